"""What `lightning test` leaves: provenance, cost, equal results on one and two processes, and going on where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from skimage.data import astronaut, cat, coffee

from lightning_modules.config import load_method
from lightning_modules.config_files import CONFIGS
from lightning_modules.evaluation.results import read_results
from lightning_modules.running.experiment import run
from lightning_modules.weight_files import digest

ROOT = CONFIGS.parent
IMAGES = 5


class Interruption(Exception):
    """What stops a test in its middle."""


class StopsAfter(Callback):
    """Stops a test once some images are done."""

    def __init__(self, images: int) -> None:
        self.images = images

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if rest[2] + 1 == self.images:
            raise Interruption


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "small"
    folder.mkdir()
    for index, photo in enumerate((astronaut, cat, coffee, astronaut, cat)):
        Image.fromarray(photo()[40 * index : 40 * index + 64, 100:164]).save(folder / f"{index}.png")
    return folder


def arguments(photos: Path, *more: str) -> list[str]:
    checkpoint = Path(os.environ["DIFFSR_TINY"]) / "sr3_cosine.ckpt"
    data = ["--data", "datamodules.folder.Folder", "--data.init_args.test", str(photos)]
    options = ["--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu"]
    return ["test", "--ckpt_path", str(checkpoint), *data, *options, *more]


def results_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results.json")
    return dict(read_results(path).content)


@pytest.fixture(scope="module")
def one(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(arguments(photos))
    return folder


def test_results_name_what_they_depend_on(one: Path, photos: Path) -> None:
    results = results_in(one)
    checkpoint = Path(os.environ["DIFFSR_TINY"]) / "sr3_cosine.ckpt"
    assert results["checkpoint"] == {"path": str(checkpoint), "sha256": digest(checkpoint)}
    assert results["method"]["class"] == "lightning_modules.sr3.SR3"
    assert results["method"]["sampler"] == load_method(checkpoint).protocol()
    assert results["method"]["config"]["sampler"]["init_args"]["steps"] > 0
    assert results["data"]["config"]["test"] == str(photos)
    assert results["data"]["count"] == IMAGES and results["data"]["degradation_seed"] == 0
    assert results["run"].keys() >= {"seed", "precision", "device", "torch", "commit", "sources_sha256"}
    assert len(results["rows"]) == IMAGES * len(results["definitions"])


def test_another_image_has_another_hash(one: Path, photos: Path, tmp_path: Path) -> None:
    changed = tmp_path / "small"
    changed.mkdir()
    for path in photos.iterdir():
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0, 0] ^= path.stem == "3"
        Image.fromarray(pixels).save(changed / path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        run(arguments(changed))
    assert results_in(tmp_path)["data"]["hr_sha256"] != results_in(one)["data"]["hr_sha256"]


def test_cost_stands_beside_quality(one: Path) -> None:
    results = results_in(one)
    method = load_method(results["checkpoint"]["path"])
    steps = results["method"]["config"]["sampler"]["init_args"]["steps"]
    assert results["cost"]["evaluations"] == steps
    assert results["cost"]["parameters"] == sum(each.numel() for each in method.parameters())
    assert results["cost"]["trained_parameters"] == results["cost"]["parameters"]
    assert results["cost"]["flops"] > steps * results["cost"]["flops_pixels"]
    assert results["cost"]["flops_image"] == "small/0"
    times = results["times"]
    assert times["timed_images"] == IMAGES - 1 and times["seconds_per_image"] > 0
    pixels = 64 * 64 / 1e6
    assert times["megapixels_per_second"] == pytest.approx(pixels / times["seconds_per_image"])
    assert times["peak_memory_mib"] > 0


def test_two_processes_leave_the_results_of_one(one: Path, photos: Path, tmp_path: Path) -> None:
    strategy = yaml.safe_load((CONFIGS / "hardware" / "ddp8.yaml").read_text())["trainer"]["strategy"]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"trainer": {"devices": 2, "strategy": strategy}}))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [str(Path(sys.executable).with_name("lightning")), *arguments(photos)]
    command += ["--config", str(tmp_path / "two.yaml"), "--experiment", "test"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    ours, theirs = results_in(tmp_path), results_in(one)
    for results in (ours, theirs):
        assert results.pop("times")["timed_images"] >= IMAGES - 2
    assert ours["rows"] == theirs["rows"]
    assert ours == theirs


def test_an_interrupted_test_goes_on_where_it_was(
    one: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stops = {"class_path": f"{__name__}.StopsAfter", "init_args": {"images": 3}}
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [stops]}}))
    with pytest.raises(Interruption):
        run(arguments(photos, "--config", str(tmp_path / "stop.yaml"), "--experiment", "mine"))
    assert not list(tmp_path.rglob("results.json"))
    trees = {path: path.stat().st_ino for path in tmp_path.rglob("images/sr/small/*.png")}
    assert len(trees) == 3

    run(arguments(photos, "--experiment", "mine"))
    assert "3 image(s) of an interrupted test are there already" in capsys.readouterr().out
    (new,) = tmp_path.rglob("results.json")
    kept = {path.stat().st_ino for path in new.parent.glob("images/sr/small/*.png")}
    assert len(kept) == IMAGES and set(trees.values()) < kept, "the images were not taken over"
    ours, uninterrupted = results_in(tmp_path), results_in(one)
    assert ours["rows"] == uninterrupted["rows"] and ours["cost"] == uninterrupted["cost"]
    assert not list(new.parent.glob("images/unfinished.json"))

    # Another seed makes other images: nothing is taken over.
    run(arguments(photos, "--experiment", "mine", "--seed_everything", "5"))
    assert "interrupted" not in capsys.readouterr().out


def test_a_damaged_or_foreign_image_is_sampled_again(
    one: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stops = {"class_path": f"{__name__}.StopsAfter", "init_args": {"images": 3}}
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [stops]}}))
    with pytest.raises(Interruption):
        run(arguments(photos, "--config", str(tmp_path / "stop.yaml"), "--experiment", "mine"))
    (folder,) = tmp_path.rglob("images/sr/small")
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (64, 64)).save(folder / "2.png")
    run(arguments(photos, "--experiment", "mine"))
    assert results_in(tmp_path)["rows"] == results_in(one)["rows"]


def test_every_image_is_there_as_a_file(one: Path, photos: Path) -> None:
    (path,) = one.rglob("results.json")
    results = read_results(path)
    for kind in ("sr", "hr", "lr"):
        files = [results.picture(kind, key) for key in results.images]
        assert sorted((path.parent / "images" / kind).rglob("*.png")) == files
    hr = path.parent / "images" / "hr"
    for file in photos.iterdir():
        with Image.open(file) as given, Image.open(hr / "small" / file.name) as kept:
            assert list(given.getdata()) == list(kept.getdata())
    assert json.loads(path.read_text())["pictures"] == {"sr": "images/sr", "hr": "images/hr", "lr": "images/lr"}
