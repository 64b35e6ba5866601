"""`lightning fit` on two gloo processes, and the sweep's command."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from lightning_modules.running.experiment import run
from tests.tiny.experiments import CONFIGS, arguments

ROOT = CONFIGS.parent
RECORDER = "tests.tiny.recorder.Recorder"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps on two processes, of SRDiff + YODA."""
    folder = tmp_path_factory.mktemp("two")
    recorder = {"class_path": RECORDER, "init_args": {"folder": str(folder / "seen")}}
    strategy = yaml.safe_load((CONFIGS / "hardware" / "ddp8.yaml").read_text())["trainer"]["strategy"]
    overlay = {"trainer": {"devices": 2, "strategy": strategy, "callbacks+": [recorder]}}
    (folder / "two.yaml").write_text(yaml.safe_dump(overlay))
    experiment = arguments(CONFIGS / "srdiff_yoda.yaml")
    script = Path(sys.executable).with_name("lightning")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [str(script), "fit", *experiment, "--config", str(folder / "two.yaml")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return folder


def seen(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / "seen" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_ranks_see_different_images_and_draw_different_times(two: Path) -> None:
    first, second = seen(two)
    assert len(first["images"]) == len(second["images"]) == 4
    assert not set(first["images"]) & set(second["images"])
    assert not set(first["times"]) & set(second["times"])


def test_ranks_end_with_equal_weights(two: Path) -> None:
    first, second = seen(two)
    assert first["weights"] == second["weights"]


def test_one_run_folder_with_one_grid(two: Path) -> None:
    experiment = two / "runs" / "srdiff_yoda"
    versions = [path for path in experiment.iterdir() if not path.is_symlink()]
    assert [path.name for path in versions] == ["version_0"]
    assert (experiment / "last").resolve() == versions[0].resolve()
    assert len(list(versions[0].glob("samples/*.png"))) == 1


def test_the_sweep_runs_as_the_agent_would_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load((CONFIGS / "sweeps" / "yoda.yaml").read_text())
    assert sweep["command"][0] == "lightning" and sweep["command"][-1] == "${args}"
    files = [ROOT / part for part in sweep["command"] if part.endswith(".yaml")]
    names = list(sweep["parameters"])
    sampled = list(product(*(sweep["parameters"][name]["values"] for name in names)))[-1]
    sampled_flags = [f"--{name}={value}" for name, value in zip(names, sampled, strict=True)]
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # the service of another test would write below the folder that it was started in
    configs = [*(flag for path in files for flag in ("--config", str(path))), *arguments(CONFIGS / "srdiff.yaml")[2:]]
    result = run(["fit", *configs, *sampled_flags])
    wandb.finish()
    region = result.model.region
    assert result.trainer.global_step == 2
    assert (region.lower_bound, type(region.attention).__name__) == (sampled[0], sampled[1].rsplit(".", 1)[1])
    assert list(tmp_path.glob("runs/wandb/offline-run-*/*.wandb")), "nothing was logged to W&B offline"
