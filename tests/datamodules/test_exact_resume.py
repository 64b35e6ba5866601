"""Straight through, or killed half-way and resumed: the same images, degradations and weights, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.datamodules import resumed

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *options: str, ends: int = 0) -> None:
    """A run in a process of its own, which ends with the given exit code."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.datamodules.resumed", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == ends, done.stderr[-3000:]


def record(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"rank-{rank}.json").read_text())
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("straight")
    resumed.main(str(folder), "--workers", "0")
    return record(folder)


def test_a_killed_run_resumes_exactly(straight: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, "--save-at", "5", "--kill", ends=-9)
    run(tmp_path, "--resume")
    assert record(tmp_path)["seen"] == straight["seen"][5:]
    assert record(tmp_path)["weights"] == straight["weights"]


@pytest.mark.parametrize("workers", ["0", "1", "3"])
@pytest.mark.parametrize("peek", [[], ["--peek"]], ids=["", "loader started early"])
def test_any_number_of_workers_resumes_exactly(
    straight: dict[str, Any], tmp_path: Path, workers: str, peek: list[str]
) -> None:
    resumed.main(str(tmp_path), "--steps", "5", "--save-at", "5", "--workers", "2")
    resumed.main(str(tmp_path), "--resume", "--workers", workers, *peek)
    assert record(tmp_path)["seen"] == straight["seen"][5:]
    assert record(tmp_path)["weights"] == straight["weights"]


@pytest.mark.filterwarnings("error:You're resuming")
def test_epochs_of_the_trainer_change_nothing(straight: dict[str, Any], tmp_path: Path) -> None:
    resumed.main(str(tmp_path), "--epoch", "4", "--steps", "6", "--save-at", "6", "--workers", "0")
    resumed.main(str(tmp_path), "--epoch", "4", "--resume", "--workers", "0")
    assert record(tmp_path)["seen"] == straight["seen"][6:]
    assert record(tmp_path)["weights"] == straight["weights"]


def test_accumulated_gradients_resume_exactly(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    common = ["--accumulate", "3", "--workers", "0"]
    resumed.main(str(whole), "--steps", "6", *common)
    resumed.main(str(halves), "--steps", "2", "--save-at", "2", *common)
    resumed.main(str(halves), "--steps", "6", "--resume", *common)
    assert record(halves)["seen"] == record(whole)["seen"][6:]
    assert record(halves)["weights"] == record(whole)["weights"]


def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(whole, "--processes", "2")
    run(halves, "--processes", "2", "--steps", "5", "--save-at", "5")
    run(halves, "--processes", "2", "--resume")
    for rank in range(2):
        assert record(halves, rank)["seen"] == record(whole, rank)["seen"][5:]
        assert record(halves, rank)["weights"] == record(whole, rank)["weights"]
    assert record(whole, 0)["weights"] == record(whole, 1)["weights"]
    seen = zip(record(whole, 0)["seen"], record(whole, 1)["seen"], strict=True)
    assert all(not set(one[0]) & set(other[0]) or one[1] != other[1] for one, other in seen)
