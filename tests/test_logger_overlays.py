"""Loggers beside the CSV file, each by one overlay."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from skimage.data import astronaut, cat

from lightning_modules.config_files import CONFIGS
from lightning_modules.evaluation.results import read_results
from lightning_modules.running.experiment import run
from tests.tiny.experiments import arguments


@pytest.fixture
def wandb(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, which keeps no process of another test's folder."""
    package = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(here / "staged"))
    package.teardown()
    yield package
    package.teardown()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    for index, photo in enumerate((astronaut, cat)):
        Image.fromarray(photo()[100:164, 100:164]).save(tmp_path / "small" / f"{index}.png")
    return tmp_path


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def overlay(name: str) -> list[str]:
    return ["--config", str(CONFIGS / "logger" / f"{name}.yaml")]


def a_test(logger: str) -> None:
    checkpoint = Path(os.environ["DIFFSR_TINY"]) / "sr3_cosine.ckpt"
    data = [
        "--data",
        "datamodules.folder.Folder",
        "--data.init_args.test",
        "small",
        "--data.init_args.num_workers",
        "0",
    ]
    quick = ["--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu"]
    run(["test", "--ckpt_path", str(checkpoint), *overlay(logger), *data, *quick])


def test_wandb_has_the_table_the_summary_and_the_provenance(here: Path, wandb: Any) -> None:
    a_test("wandb")
    wandb.finish()
    wandb.teardown()  # everything is on the disk
    (results_path,) = here.rglob("results.json")
    results = read_results(results_path)

    (path,) = here.rglob("files/media/table/test/images_*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"][:4] == ["image", "lr", "sr", "hr"]
    place = table["columns"].index("psnr_y")
    assert {row[0]: row[place] for row in table["data"]} == pytest.approx(results.values("psnr_y"))
    assert [row[1:4] for row in table["data"]] == [["Image"] * 3] * 2
    staged = {pixels(path) for path in here.glob("staged/artifacts/staging/*") if path.read_bytes()[1:4] == b"PNG"}
    assert {pixels(path) for path in results_path.parent.glob("images/sr/small/*.png")} < staged
    (log,) = here.glob("runs/wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    sha256 = str(results.content["checkpoint"]["sha256"]).encode()
    for name in (b"test/psnr_y", b"test/cost/evaluations", b"provenance", b"protocol", sha256):
        assert name in content


def test_wandb_has_checkpoints_as_artifacts_names_and_best_values(here: Path, wandb: Any) -> None:
    options = ["--model.init_args.optimizer.init_args.lr", "0.5", "--trainer.max_steps=2"]
    trained = run(["fit", *arguments(CONFIGS / "sr3.yaml"), *overlay("wandb"), *options])
    started: Any = cast(Any, trained.trainer.loggers[1]).experiment
    name = f"model-{started.id}"
    assert re.fullmatch(r"sr3 \+\S.* lr=0.5 max_steps=2 version_0", started.name)
    assert started.group == "sr3" and {"SR3", "Photos", "Ancestral"} <= set(started.tags)
    assert started.summary["best/val/psnr_y"] == float(trained.trainer.callback_metrics["val/psnr_y"])
    assert started.config["trainer"]["max_steps"] == 2
    wandb.finish()
    wandb.teardown()  # everything is on the disk
    (log,) = here.glob("runs/wandb/offline-run-*/run-*.wandb")
    assert name.encode() in log.read_bytes()


def test_tensorboard_is_in_the_runs_folder_also_when_it_goes_on(here: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command = ["fit", *arguments(CONFIGS / "sr3.yaml"), *overlay("tensorboard"), "--trainer.val_check_interval", "1"]
    run([*command, "--trainer.max_steps", "1"])
    run([*command, "--trainer.max_steps", "3", "--ckpt_path", "last"])
    folder = here / "runs/sr3/version_0/tensorboard"
    assert {path.parent for path in here.rglob("events.out.tfevents.*")} == {folder}
    found = events.EventAccumulator(str(folder)).Reload()
    scores = {event.step: event.value for event in found.Scalars("val/psnr_y")}
    assert len(scores) == 3
    best = [event.value for event in found.Scalars("best/val/psnr_y")]
    assert best == sorted(best) and best[-1] == pytest.approx(max(scores.values()), rel=1e-5)


def test_tensorboard_has_the_same_scores_and_grids(here: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    a_test("tensorboard")
    (results_path,) = here.rglob("results.json")
    results = read_results(results_path)
    (path,) = here.rglob("events.out.tfevents.*")
    found = events.EventAccumulator(str(path)).Reload()
    (score,) = found.Scalars("test/psnr_y")
    assert score.value == pytest.approx(results.mean("psnr_y"), rel=1e-5)
    (logged,) = found.Images("test/samples")
    (text,) = found.Tensors("test/results/text_summary")
    assert b"| test | 2 |" in text.tensor_proto.string_val[0]
    assert {tag for tag in found.Tags()["images"] if tag.endswith("/sr")} == {"test/small/0/sr", "test/small/1/sr"}
    (grid,) = results_path.parent.glob("samples/test-step-*.png")
    with Image.open(grid) as kept:
        assert (logged.width, logged.height) == kept.size
