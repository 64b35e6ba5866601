"""Two processes score, draw and average as one does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.callbacks import small

ROOT = Path(__file__).resolve().parents[2]


class Runs(NamedTuple):
    one: Path
    two: Path

    def record(self, folder: str, rank: int = 0) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((getattr(self, folder) / f"rank-{rank}.json").read_text())
        return record


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    both = Runs(one=tmp_path_factory.mktemp("one"), two=tmp_path_factory.mktemp("two"))
    small.main(both.one, 1)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.callbacks.small", str(both.two), "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return both


# 5 validation images do not divide by 2: one is given to both processes. So is the only test image.
@pytest.mark.parametrize("stage", ["val", "test"])
def test_scores_are_those_of_one_process(runs: Runs, stage: str) -> None:
    scores = runs.record("two")[stage]
    assert scores.keys() >= {
        f"{stage}/{name}" for name in ("psnr_y", "ssim_rgb", "bicubic/psnr_y", "colour_error_r", "distance")
    }
    assert scores == pytest.approx(runs.record("one")[stage], rel=1e-6)


@pytest.mark.parametrize(("stage", "images"), [("val", 5), ("test", 1)])
def test_each_image_is_counted_once(runs: Runs, stage: str, images: int) -> None:
    name = f"scores/{stage}-step-000000.csv"
    with (runs.two / name).open() as file:
        assert [row["key"] for row in csv.DictReader(file)] == [f"{stage}/{index:02d}" for index in range(images)]
    assert (runs.two / name).read_text() == (runs.one / name).read_text()


def test_one_grid_is_drawn_and_it_is_that_of_one_process(runs: Runs) -> None:
    names = ["step-000000.png", "step-000002.png", "test-step-000000.png"]
    assert sorted(path.name for path in (runs.two / "samples").iterdir()) == names
    for name in ("step-000000.png", "test-step-000000.png"):
        assert (runs.two / "samples" / name).read_bytes() == (runs.one / "samples" / name).read_bytes()


def test_a_process_without_an_image_to_enlarge_does_not_stop_the_other(runs: Runs) -> None:
    name = "predictions/photos/sub/00.png"
    assert (runs.two / name).read_bytes() == (runs.one / name).read_bytes()


def test_processes_end_with_equal_scores_and_averages(runs: Runs) -> None:
    first, second = runs.record("two", 0), runs.record("two", 1)
    assert first["after"] == second["after"]
    assert first["after"]["val/psnr_y"] != first["val"]["val/psnr_y"]
    assert first["weights"] == second["weights"]
