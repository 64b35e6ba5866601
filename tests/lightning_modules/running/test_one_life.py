"""A run that is terminated, fails, is requeued and killed twice is the run that was left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.running.same_run import differences
from tests.tiny.experiments import CONFIGS


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("life")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.cluster.one_life", str(folder)]
    done = subprocess.run(command, cwd=CONFIGS.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_each_end_keeps_the_last_complete_step_and_its_exit_code(life: Path) -> None:
    found: dict[str, Any] = json.loads((life / "found.json").read_text())
    assert found.pop("alone") == 0
    assert found == {
        "terminated": {"code": 128 + signal.SIGTERM, "step": 3},
        "error in validation": {"code": 70, "step": 4},
        "requeued": {"code": 128 + signal.SIGUSR1, "step": 5},
        "killed while writing": {"code": -signal.SIGKILL, "step": 8},
        "killed in the last validation": {"code": -signal.SIGKILL, "step": 8},
        "ended": {"code": 0, "step": 8},
    }
    assert "SIGTERM: step 3 is kept in runs/sr3/slurm-7/checkpoints/last.ckpt. Go on" in text(life)


def test_the_end_is_that_of_the_run_left_alone(life: Path) -> None:
    alone, interrupted = life / "alone/runs/sr3/version_0", life / "interrupted/runs/sr3/slurm-7"
    assert not differences(alone, interrupted)
    lines = (interrupted / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 8


def test_all_is_in_one_folder_without_temporary_files(life: Path) -> None:
    runs = life / "interrupted" / "runs"
    assert {path.name for path in runs.rglob("*") if path.is_dir()} == {
        "sr3",
        "slurm-7",
        "last",
        "checkpoints",
        "samples",
        "scores",
    }
    assert not list(runs.rglob("*.part"))
    assert {path.name for path in (life / "interrupted").iterdir()} == {
        "bin",
        "data",
        "log.txt",
        "run.yaml",
        "runs",
        "scontrol.txt",
    }


def test_only_the_requeued_start_asks_the_scheduler_and_only_once(life: Path) -> None:
    assert (life / "interrupted" / "scontrol.txt").read_text() == "requeue 7\n"


def text(life: Path) -> str:
    return (life / "interrupted" / "log.txt").read_text()
