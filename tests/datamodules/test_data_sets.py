"""Each published set is prepared from its real directory layout, and its config reads what was prepared."""

import hashlib
import io
import json
import re
import shlex
import zipfile
from collections.abc import Callable
from inspect import signature
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from datamodules import celeba, div2k, ffhq, realsr
from datamodules.base import SRDataModule
from datamodules.benchmark_sets import BenchmarkSet
from datamodules.celeba import CelebA
from datamodules.degradations.bicubic import Bicubic
from datamodules.div2k import DF2K, DIV2K
from datamodules.ffhq import Faces
from datamodules.prepare import archives, pack
from datamodules.prepare.archives import Archive, fetch_images
from datamodules.prepare.pack import pack_folder
from datamodules.prepare.preview import PRESETS
from datamodules.prepare.shard_writer import PackError
from datamodules.realsr import DRealSR, RealSR
from datamodules.shard_folder import ShardFolder
from datamodules.stream.shards import open_split
from lightning_modules.cli import degradation as build_degradation
from lightning_modules.config_files import CONFIGS, layers, read_yaml
from tests.datamodules.configs import configured
from tests.datamodules.trees import picture, save
from tests.tiny.experiments import EXPERIMENTS

DATA = sorted((CONFIGS / "data").glob("*.yaml"))
PUBLISHED = [path for path in DATA if path.stem not in ("folder", "packed", "photos")]  # those are the user's


def div2k_tree(raw: Path) -> None:
    for split, first in (("train", 1), ("valid", 801)):
        for number in (first, first + 1):
            save(raw / f"DIV2K_{split}_HR" / f"{number:04d}.png", number, 480, 720)
            save(raw / f"DIV2K_{split}_LR_bicubic" / "X4" / f"{number:04d}x4.png", number, 120, 180)
    save(raw / "Flickr2K" / "Flickr2K_HR" / "000001.png", 1, 484, 480)


def realsr_tree(raw: Path) -> None:
    for camera in ("Canon", "Nikon"):
        for split in ("Train", "Test"):
            save(raw / camera / split / "4" / f"{camera}_001_HR.png", 1, 520, 540)
            save(raw / camera / split / "4" / f"{camera}_001_LR4.png", 1, 130, 135)


def drealsr_tree(raw: Path) -> None:
    for split in ("Train", "Test"):
        save(raw / f"{split}_x4" / f"{split.lower()}_HR" / "panasonic_10_x4.png", 1, 520, 540)
        save(raw / f"{split}_x4" / f"{split.lower()}_LR" / "panasonic_10_x1.png", 1, 130, 135)


def celeba_tree(raw: Path) -> None:
    lines = []
    for number, part in enumerate((0, 0, 1, 2), 1):
        save(raw / "img_align_celeba" / f"{number:06d}.jpg", number, 218, 178)
        lines.append(f"{number:06d}.jpg {part}\n")
    (raw / "Eval").mkdir()
    (raw / "Eval" / "list_eval_partition.txt").write_text("".join(lines))


def faces(folder: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        save(folder / name, seed, 512, 512)
    return folder


def benchmark_tree(root: Path) -> None:
    save(root / "B100" / "HR" / "000.png", 0, 41, 62)
    for name, count in {"Set5": 5, "Set14": 14, "BSD100": 100, "Urban100": 100, "Manga109": 109}.items():
        for index in range(1 if name == "BSD100" else 0, count):
            folder = "B100" if name == "BSD100" else name
            save(root / folder / "HR" / f"{index:03d}.png", index, 41, 62)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with every set raw and, below data/, packed as the configs expect it."""
    home = tmp_path_factory.mktemp("sets")
    div2k_tree(home / "div2k")
    for out in ("div2k", "df2k_640"):
        div2k.prepare(str(home / "div2k"), str(home / "data" / out), flickr2k=True, leave_out=True, workers=1)
    realsr_tree(home / "RealSR(V3)")
    realsr.prepare(str(home / "RealSR(V3)"), str(home / "data/realsr"), workers=1)
    drealsr_tree(home / "DRealSR")
    realsr.prepare(str(home / "DRealSR"), str(home / "data/realsr"), name="drealsr", workers=1)
    celeba_tree(home / "celeba")
    celeba.prepare(str(home / "celeba"), str(home / "data/celeba"), workers=1)
    flickr = faces(home / "images1024x1024", ["00000/00000.png", "00000/00001.png", "01000/01000.png"])
    hq = faces(home / "celeba_hq", ["0.jpg", "1.jpg"])
    for size, scale in ((64, 4), (128, 8), (256, 4), (512, 8)):
        ffhq.prepare(str(flickr), str(home / "data/faces"), "ffhq", size, scale, workers=1)
        ffhq.prepare(str(hq), str(home / "data/faces"), "celebahq", size, scale, workers=1)
    benchmark_tree(home / "data/benchmark")
    for split in ("train", "val"):
        save(home / "mine" / split / "a.png", 0, 200, 200)
    for split in ("train", "val"):
        pack_folder(str(home / "mine" / split), str(home / "data/mine"), "mine", split, workers=1)
    return home


TRAINS = {  # config: images in an epoch of training, in validation, HR size and LR size of a validation image
    "div2k_x4": (4, 2, (480, 720), (120, 180)),
    "df2k_x4": (6, 2, (480, 720), (120, 180)),
    "df2k_x4_640": (6, 2, (480, 720), (120, 180)),
    "realsr_x4": (2, 2, (512, 512), (128, 128)),
    "realsr_x4_full": (2, 2, (520, 540), (130, 135)),
    "drealsr_x4": (1, 1, (512, 512), (128, 128)),
    "drealsr_x4_full": (1, 1, (520, 540), (130, 135)),
    "ffhq_16_128": (3, 2, (128, 128), (16, 16)),
    "ffhq_64_512": (3, 2, (512, 512), (64, 64)),
    "faces_16_64": (3, 2, (64, 64), (16, 16)),
    "faces_64_256": (3, 2, (256, 256), (64, 64)),
    "celeba_x8": (2, 1, (160, 160), (20, 20)),
    "packed": (1, 1, (200, 200), (50, 50)),
    "photos": (151, 2, (300, 448), (75, 112)),
    "set5": (0, 5, (40, 60), (10, 15)),
    "set14": (0, 14, (40, 60), (10, 15)),
    "b100": (0, 100, (40, 60), (10, 15)),
    "urban100": (0, 100, (40, 60), (10, 15)),
    "manga109": (0, 109, (40, 60), (10, 15)),
}


@pytest.mark.parametrize("config", [path for path in DATA if path.stem != "folder"], ids=lambda path: path.stem)
def test_every_config_reads_what_was_prepared(config: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    samples, images, hr, lr = TRAINS[config.stem]
    data = configured([config], "--data.init_args.num_workers=0", "--data.init_args.val_batch_size=1")
    data.prepare_data()
    raw = list(data.val_dataloader())
    batch = data.on_after_batch_transfer(raw[0], 0)
    assert len({one["key"][0] for one in raw}) == len(raw) == images
    assert (tuple(batch["hr"].shape[-2:]), tuple(batch["lr"].shape[-2:])) == (hr, lr)
    assert batch["up"].shape == batch["hr"].shape
    if samples:
        assert len(data.source("train")) == samples
        trained = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        assert trained["hr"].shape[-1] == trained["lr"].shape[-1] * data.scale == data.train_crop.size


WORDS = {  # what stands in the packers' commands for what a user has, and where the fixture below has it
    "640": "480",  # the small trees have no larger images
    "320": "240",
    "RAW": "raw",
    "FOLDER": "raw/DIV2K_train_HR",
    "FACES": "celeba_hq",
    "FFHQ_FOLDER": "images1024x1024",
    "CELEBAHQ_FOLDER": "celeba_hq",
}


@pytest.fixture
def raw(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with every set as published and nothing packed."""
    for name in ("RealSR(V3)", "DRealSR", "celeba_hq", "images1024x1024"):
        (tmp_path / name).symlink_to(prepared / name)
    (tmp_path / "raw").mkdir()
    for part in [path for name in ("div2k", "celeba", "RealSR(V3)") for path in (prepared / name).iterdir()]:
        (tmp_path / "raw" / part.name).symlink_to(part)
    for split in ("Train", "Test"):
        (tmp_path / "raw" / f"{split}_x4").symlink_to(prepared / "DRealSR" / f"{split}_x4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def carry_out(command: str) -> None:
    """Runs a packer's command line as it is written, on the small trees."""
    lightning, name, *words = shlex.split(command)
    assert (lightning, name) == ("lightning", "pack")
    leave_out = ["--leave_out=true"] if words[0] in ("div2k", "celeba") else []
    pack.main([*(WORDS.get(word, word) for word in words), *leave_out, "--workers=1"])


def own(root: str) -> SRDataModule:
    return ShardFolder(root, train="mine-train", val="mine-val")


@pytest.mark.parametrize("make", [DIV2K, DF2K, RealSR, DRealSR, CelebA, Faces, own], ids=lambda make: make.__name__)
def test_an_absent_set_names_the_command_that_prepares_it(make: Callable[..., SRDataModule], raw: Path) -> None:
    data = make(root="packed")
    for split in ("train", "val"):
        try:
            data.source(split)
        except FileNotFoundError as error:
            (command,) = re.findall("`(.*)`", str(error))
            carry_out(command)
        assert len(data.source(split))


@pytest.mark.parametrize("config", DATA, ids=lambda path: path.stem)
def test_commands_in_configs_prepare_what_they_name(config: Path, raw: Path) -> None:
    commands = re.findall("^#   (lightning pack .*)$", config.read_text(), re.MULTILINE)
    for command in commands:
        carry_out(command)
    if commands:
        assert len(configured([config]).source("train"))


def packed_side(command: str) -> int | None:
    """The side of what a packer's command makes; None where it packs images as they are."""
    lightning, pack_, first, *words = shlex.split(command)
    assert (lightning, pack_) == ("lightning", "pack")
    prepare = pack.PUBLISHED.get(first, pack_folder)
    options = dict(pairwise(words))
    defaults = {name: value.default for name, value in signature(prepare).parameters.items()}
    side = options.get("--size", options.get("--crop", defaults.get("size", defaults.get("crop"))))
    return None if side is None else int(side)


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_what_an_experiment_says_is_packed_is_large_enough_for_its_crop(config: Path, tmp_path: Path) -> None:
    described = [entry for layer in layers(config) if (entry := read_yaml(layer).get("data"))]
    files = [tmp_path / f"{number}.yaml" for number in range(len(described))]
    for file, entry in zip(files, described, strict=True):
        file.write_text(yaml.safe_dump({"data": entry}))
    module = configured(files)
    if not isinstance(module, ShardFolder):
        return  # it reads images as they are, or checks its tiles itself

    crop, sets = module.train_crop.size, str(module.sets["train"])
    text = "\n".join(layer.read_text() for layer in layers(config))
    commands = [
        line for line in re.findall("^#   (lightning pack .*)$", text, re.MULTILINE) if module.root in shlex.split(line)
    ]
    if "--size" in text:  # of several sets of faces, that which is trained on
        commands = [line for line in commands if f"_{packed_side(line)}-" in sets and "celebahq" not in line]
    assert commands, f"no config says how {sets} in {module.root} is prepared"
    for command in [*commands, *([] if type(module) is ShardFolder else [module._command(sets)])]:
        side = packed_side(command)
        assert side is None or side >= crop, f"{command}: makes images of {side}, and the crop is {crop}"


def test_folder_config_takes_the_users_folder(prepared: Path) -> None:
    data = configured([CONFIGS / "data" / "folder.yaml"], f"--data.init_args.train={prepared / 'mine'}")
    assert len(data.source("train")) == len(data.source("val")) == 1


def overlaid(*presets: Path) -> tuple[type, dict[str, Any]]:
    """What the last of some degradation presets makes of the ones before it."""
    degradation = configured([CONFIGS / "data" / "div2k_x4.yaml", *presets]).degradation
    return type(degradation), vars(degradation)


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_leaves_nothing_of_the_one_before(preset: Path) -> None:
    shown = build_degradation([str(preset)])
    for before in PRESETS.glob("*.yaml"):
        assert overlaid(before, preset) == overlaid(preset) == (type(shown), vars(shown))


@pytest.mark.parametrize("name", ["set5", "set14", "b100", "urban100", "manga109"])
def test_a_benchmark_set_is_bicubic_whatever_the_training_was(name: str) -> None:
    data = CONFIGS / "data"
    degradation = configured([data / "div2k_x4.yaml", PRESETS / "resshift.yaml", data / f"{name}.yaml"]).degradation
    assert (type(degradation), vars(degradation)) == (Bicubic, {"scale": 4, "rounding": "once"})


def takes(class_path: str) -> set[str]:
    """The arguments of a data module's constructor, with those that `**options` hands on, without what it fixes."""
    parser = ArgumentParser()
    parser.add_class_arguments(cast(type, locate(class_path)), fail_untyped=False)
    return set(vars(parser.get_defaults()))


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda path: path.stem)
def test_a_benchmark_leaves_nothing_open_that_scores_depend_on(config: Path) -> None:
    """Else a config beneath it, or a checkpoint, would decide it without a word."""
    data = [read_yaml(layer).get("data", {}) for layer in layers(config)]
    (class_path,) = {entry["class_path"] for entry in data if "class_path" in entry}
    said = {name for entry in data for name in entry.get("init_args", {})}
    decisive = {"val_crop", "val_batch_size", "degradation", "paired", "attention"}
    assert not decisive & takes(class_path) - said


@pytest.mark.parametrize("name", ["set5", "set14", "b100", "urban100", "manga109"])
def test_a_benchmark_is_the_same_over_any_training_config(name: str, tmp_path: Path) -> None:
    cropped = tmp_path / "cropped.yaml"
    settings = {"val_crop": 160, "val_batch_size": 7, "attention": "maps", "paired": True}
    cropped.write_text(yaml.safe_dump({"data": {"init_args": settings}}))
    below = [CONFIGS / "data" / "div2k_x4.yaml", PRESETS / "resshift.yaml", cropped]
    assert configured(below).protocol()["images"] == "centre 160x160"

    benchmark = CONFIGS / "data" / f"{name}.yaml"
    alone, over = configured([benchmark]), configured([*below, benchmark])
    assert alone.protocol() == over.protocol() and (over.val_batch_size, over.attention) == (1, None)
    assert alone.protocol()["images"] == "whole"


def test_a_test_set_has_nothing_to_train_on(prepared: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Set5 is for test only"):
        BenchmarkSet(str(prepared / "data/benchmark")).train_dataloader()


def test_published_lr_is_packed_beside_hr(prepared: Path) -> None:
    out = prepared / "with_lr"
    div2k.prepare(str(prepared / "div2k"), str(out), lr=4, leave_out=True, workers=1)
    sample = open_split(str(out), "div2k-train").sample(1, paired=True)
    expected = np.asarray(picture(1, 120, 180))[:, 60:]
    assert sample.lr is not None and np.array_equal(sample.lr, expected)
    assert sample.key == "div2k/0001_s002"


def test_faces_are_those_of_pillow(prepared: Path) -> None:
    sample = open_split(str(prepared / "data/faces"), "ffhq_16_128-train").sample(0, paired=True)
    face = picture(0, 512, 512)
    assert np.array_equal(sample.hr, np.asarray(face.resize((128, 128), Image.Resampling.BICUBIC)))
    assert sample.lr is not None
    assert np.array_equal(sample.lr, np.asarray(face.resize((16, 16), Image.Resampling.BICUBIC)))


def test_celeba_faces_are_cut_and_resized_as_published(prepared: Path) -> None:
    face = Image.open(prepared / "celeba/img_align_celeba/000004.jpg").convert("RGB")
    expected = face.crop((0, 20, 178, 198)).resize((160, 160), Image.Resampling.BILINEAR)
    assert np.array_equal(
        open_split(str(prepared / "data/celeba"), "celeba-test").sample(0, paired=False).hr, np.asarray(expected)
    )


@pytest.mark.parametrize(
    "layout", ["GTmod12|LRbicx4", "HR|LR_bicubic/X4", "X4/GT|X4/LR", "image_SRF_4|image_SRF_4", "|"]
)
def test_layouts_of_benchmark_sets(layout: str, tmp_path: Path) -> None:
    hr, lr = layout.split("|")
    for index in range(5):
        beside = "_SRF_4_" if "SRF" in layout else ""
        save(tmp_path / "Set5" / hr / f"img_{index:03d}{beside and beside + 'HR'}.png", index, 40, 60)
        if lr:
            suffix = beside + "LR" if beside else "x4"
            save(tmp_path / "Set5" / lr / f"img_{index:03d}{suffix}.png", index, 10, 15)
    data = BenchmarkSet(str(tmp_path), num_workers=0, paired=bool(lr))
    raw = list(data.test_dataloader())
    assert len(raw) == 5 and raw[0]["hr"].shape == (1, 3, 40, 60)
    assert ("lr" in raw[0]) == bool(lr)
    if lr:
        assert torch.equal(raw[4]["lr"][0], torch.from_numpy(np.array(picture(4, 10, 15))).permute(2, 0, 1))


def test_an_incomplete_benchmark_set_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "Set5" / "baby.png", 0)
    with pytest.raises(FileNotFoundError, match="holds 1 images of Set5, which has 5"):
        BenchmarkSet(str(tmp_path)).test_dataloader()
    with pytest.raises(FileNotFoundError, match=r"no Set14 \(looked for .*Set14/HR"):
        BenchmarkSet(str(tmp_path), name="Set14").test_dataloader()


@pytest.mark.parametrize("data", [DIV2K, DF2K])
def test_absent_div2k_names_the_command_and_the_overlay(data: Callable[..., SRDataModule], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        data(root=str(tmp_path / "none")).train_dataloader()
    message = str(caught.value)
    assert f"lightning pack div2k RAW {tmp_path}/none" in message
    assert "train on the bundled photographs with configs/data/photos.yaml" in message


def test_div2k_with_missing_images_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PackError, match=r"DIV2K_train_HR: holds 2 images, the published set has 800; .*set leave_out to true"
    ):
        div2k.prepare(str(prepared / "div2k"), str(tmp_path), workers=1)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A small archive, and a network that has nothing else."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("HR/a.png", b"png")
    digest = hashlib.sha256(content.getvalue()).hexdigest()

    def download(url: str, target: Path, timeout: float, *, shown: bool) -> Path:
        if url != "https://host/HR.zip":
            raise OSError("Name or service not known")
        target.write_bytes(content.getvalue())
        return target

    monkeypatch.setattr(archives, "download", download)
    return Archive("https://host/HR.zip", "HR", 1, f"sha256:{digest}")


def test_an_archive_is_downloaded_checked_and_unpacked(published: Archive, tmp_path: Path) -> None:
    assert fetch_images(published, tmp_path / "raw") == tmp_path / "raw" / "HR"
    assert (tmp_path / "raw/HR/a.png").read_bytes() == b"png"


def test_an_archive_with_another_checksum_is_refused(published: Archive, tmp_path: Path) -> None:
    other = Archive(published.url, "HR", 1, "md5:0123")
    with pytest.raises(PackError, match=r"HR\.zip: its md5 is \w+, not 0123: delete it"):
        fetch_images(other, tmp_path)
    assert not (tmp_path / "HR").exists()


def test_without_network_it_says_where_the_files_go(published: Archive, tmp_path: Path) -> None:
    absent = Archive("https://elsewhere/X.zip", "X/HR", 800)
    with pytest.raises(
        PackError,
        match=r"X/HR does not exist, .*X\.zip could not be downloaded and unpacked \(Name or .*put it at .*X\.zip",
    ):
        fetch_images(absent, tmp_path)


def test_div2k_archives_have_checksums() -> None:
    for archive in div2k._HR.values():
        assert archive.digest and archive.images >= 100 and archive.url.startswith("https://")


def test_a_face_that_is_not_square_or_too_small_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0, 100, 128)
    with pytest.raises(PackError, match=r"a\.png: is 128x100; an aligned face of at least 128x128 is needed"):
        ffhq.prepare(str(tmp_path), str(tmp_path / "out"), size=128, workers=1)


def test_licences_are_recorded(prepared: Path) -> None:
    for folder in (prepared / "data").iterdir():
        description = folder / "dataset.json"
        splits: list[dict[str, Any]] = json.loads(description.read_text())["splits"] if description.exists() else []
        assert all(split["licence"] for split in splits if split["name"] != "mine")
