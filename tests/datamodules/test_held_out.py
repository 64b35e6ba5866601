"""Photographs set aside for validation: always the same, apart from those trained on; or none, and it is said."""

import json
import re
import shlex
from pathlib import Path, PurePath
from typing import Any

import pytest
import torch

from datamodules.folder import Folder
from datamodules.held_out import held_out
from datamodules.images import decode
from datamodules.prepare import doctor
from datamodules.prepare.pack import pack_folder
from datamodules.prepare.shard_writer import PackError
from datamodules.shard_folder import ShardFolder
from datamodules.stream.shards import open_split
from datamodules.stream.sources import DataError, Source
from lightning_modules.cli import degradation
from lightning_modules.config import CONFIGS
from lightning_modules.running.experiment import run
from tests.datamodules.trees import save
from tests.tiny.experiments import tiny_overlays

NAMES = [PurePath(f"{number:03d}.png") for number in range(40)]


def photographs(root: Path, count: int = 10, side: int = 96) -> Path:
    for index in range(count):
        save(root / f"{index:04d}.png", index, side, side)
    return root


def keys(source: Source) -> set[str]:
    return {source.record(index).key for index in range(len(source))}


def test_the_choice_depends_on_names_alone() -> None:
    chosen = {name for name, aside in zip(NAMES, held_out(NAMES, "10%"), strict=True) if aside}
    turned = {name for name, aside in zip(NAMES[::-1], held_out(NAMES[::-1], "10%"), strict=True) if aside}
    assert len(chosen) == 4 and chosen == turned
    assert sum(held_out(NAMES, "1%")) == 1 and sum(held_out(NAMES, 7)) == sum(held_out(NAMES, "7")) == 7
    assert chosen < {name for name, aside in zip(NAMES, held_out(NAMES, "30%"), strict=True) if aside}


def test_sub_images_of_a_photograph_stay_together() -> None:
    parts = [PurePath(f"{photo}_s{part:03d}.png") for photo in range(6) for part in range(5)]
    aside = held_out(parts, 2)
    assert sum(aside) == 10
    assert all(len(set(aside[start : start + 5])) == 1 for start in range(0, 30, 5))


@pytest.mark.parametrize("share", ["100%", 40, "0", 41])
def test_a_share_that_leaves_one_side_empty_is_refused(share: str | int) -> None:
    with pytest.raises(DataError, match="of 40 photograph"):
        held_out(NAMES, share)


def test_packing_splits_and_packs_the_same_again(tmp_path: Path) -> None:
    root, out = str(photographs(tmp_path / "in")), tmp_path / "out"
    pack_folder(root, str(out), "set", val="20%", crop=48, workers=1)
    before = (out / "dataset.json").read_text()
    pack_folder(root, str(out), "set", val="20%", crop=48, workers=1)
    assert (out / "dataset.json").read_text() == before

    val, train = (
        {key.partition("_s")[0] for key in keys(open_split(str(out), f"set-{split}"))} for split in ("val", "train")
    )
    assert len(val) == 2 and len(train) == 8 and not val & train
    with pytest.raises(PackError, match="val and split test"):
        pack_folder(root, str(out), "set", split="test", val="20%", workers=1)


def test_low_resolution_files_are_written_and_packed(tmp_path: Path) -> None:
    root, out = photographs(tmp_path / "in", 4, 98), tmp_path / "out"
    pack_folder(str(root), str(out), "set", val=1, make_lr="bicubic", scale=2, workers=1, build=degradation)
    files = sorted(path.name for path in (out / "lr_bicubic_x2").iterdir())
    assert files == [f"{index:04d}.png.png" for index in range(4)]

    data = ShardFolder(str(out), scale=2, crop=32, paired=True, num_workers=0)
    unpaired = ShardFolder(str(out), scale=2, crop=32, num_workers=0, val_crop=98)
    (stored,), (made,) = (list[Any](module.val_dataloader()) for module in (data, unpaired))
    lr = data.on_after_batch_transfer(stored, 0)["lr"]
    assert torch.allclose(lr, unpaired.on_after_batch_transfer(made, 0)["lr"], atol=1.01 / 127.5)
    assert decode(out / "lr_bicubic_x2/0000.png.png", "").shape == (49, 49, 3)


def test_a_folder_sets_a_share_of_itself_aside(tmp_path: Path) -> None:
    data = Folder(train=str(photographs(tmp_path)), val="20%", crop=32, num_workers=0)
    assert len(keys(data.source("val"))) == 2 and keys(data.source("test")) == keys(data.source("val"))
    assert keys(data.source("train")) == keys(Folder(train=str(tmp_path)).source("train")) - keys(data.source("val"))


def test_packed_sets_are_found_by_their_split(tmp_path: Path) -> None:
    root = str(photographs(tmp_path / "in", 4))
    pack_folder(root, str(tmp_path / "out"), "one", workers=1)
    assert not ShardFolder(str(tmp_path / "out")).validates
    pack_folder(root, str(tmp_path / "out"), "one", split="val", workers=1)
    data = ShardFolder(str(tmp_path / "out"))
    assert data.validates and len(data.source("train")) == len(data.source("test")) == 4

    pack_folder(root, str(tmp_path / "out"), "two", workers=1)
    with pytest.raises(DataError, match="holds one-train, two-train; set train to one of them"):
        ShardFolder(str(tmp_path / "out")).source("train")
    with pytest.raises(FileNotFoundError, match=r"lightning pack FOLDER \S*none --val 10%"):
        ShardFolder(str(tmp_path / "none")).source("train")


def fit(command: str, folder: Path, *more: str) -> None:
    """Types what the doctor said, on a tiny network, from the folder of `configs`."""
    lightning, name, *words = shlex.split(command)
    assert (lightning, name) == ("lightning", "fit")
    words = [str(CONFIGS.parent / word) if word.startswith("configs/") else word for word in words]
    tiny = [path for path in tiny_overlays(CONFIGS / "quickstart.yaml") if path.name != "base.yaml"]
    shrunk = [word for path in tiny for word in ("--config", str(path))]
    steps = [
        "--trainer.max_steps",
        "2",
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.val_check_interval",
        "2",
        "--trainer.logger.init_args.save_dir",
    ]
    run(["fit", *words, *shrunk, *steps, str(folder / "runs"), "--data.init_args.num_workers", "0", *more])


@pytest.mark.parametrize(("packed", "paired"), [(True, True), (True, False), (False, False)])
def test_what_the_doctor_says_is_ready_trains(
    packed: bool, paired: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = photographs(tmp_path / "in", 4, 64)
    if packed:
        making = {"make_lr": "bicubic", "build": degradation} if paired else {}
        pack_folder(str(where), str(tmp_path / "out"), val=1, workers=1, **making)  # type: ignore[arg-type]
        where = tmp_path / "out"
    doctor.main([str(where), "--crop", "32", "--workers", "1", "--jobs", "1"])
    (command,) = re.findall("^ready: type this\n  (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert ("paired true" in command) == paired and str(where) in command
    fit(command, tmp_path, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
    header = (tmp_path / "runs/quickstart/version_0/metrics.csv").read_text().splitlines()[0]
    assert "val/psnr_y" in header.split(",")


def test_without_validation_a_training_says_so_and_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = photographs(tmp_path / "in", 3, 64)
    options = ["--data.init_args.train", str(root), "--data.init_args.val", "null", "--data.init_args.crop", "32"]
    with caplog.at_level("INFO"):
        fit("lightning fit --config configs/quickstart.yaml --config configs/data/folder.yaml", tmp_path, *options)
    assert "there is no validation set, so this training shows no scores" in caplog.text
    version = tmp_path / "runs/quickstart/version_0"
    assert (version / "checkpoints/last.ckpt").is_file()
    assert "val/psnr_y" not in (version / "metrics.csv").read_text()


def test_a_doctor_that_found_a_problem_does_not_say_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main([str(photographs(tmp_path, 2, 24)), "--crop", "32", "--jobs", "1"])
    assert "ready" not in capsys.readouterr().out


def test_descriptions_stay_readable(tmp_path: Path) -> None:
    pack_folder(str(photographs(tmp_path / "in", 3)), str(tmp_path / "out"), "set", val=1, workers=1)
    splits = json.loads((tmp_path / "out/dataset.json").read_text())["splits"]
    assert [(split["split"], split["samples"]) for split in splits] == [("train", 2), ("val", 1)]
