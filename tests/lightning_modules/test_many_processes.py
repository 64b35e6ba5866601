"""`lightning fit` on two gloo processes, and the sweep's command."""

import json
import os
import socket
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


SRUN = """#!/bin/sh
# Two tasks of one step, as srun starts them.
export SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=1 SLURM_NODEID=0
export SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=2 SLURM_JOB_NAME=sweep MASTER_ADDR=127.0.0.1 MASTER_PORT={port}
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" || exit 1
wait $!
"""


def test_a_sweep_under_srun_gives_its_parameters_to_all_processes(tmp_path: Path) -> None:
    """As the agent in a batch script runs it; the first process alone talks to W&B."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = SRUN.format(port=free.getsockname()[1])
    (tmp_path / "srun").write_text(script)
    (tmp_path / "srun").chmod(0o755)
    recorder = {"class_path": RECORDER, "init_args": {"folder": str(tmp_path / "seen")}}
    (tmp_path / "seen.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [recorder]}}))

    sweep = yaml.safe_load((CONFIGS / "sweeps" / "yoda.yaml").read_text())
    files = [ROOT / part for part in sweep["command"] if part.endswith(".yaml")]
    sampled = {name: parameter["values"][-1] for name, parameter in sweep["parameters"].items()}
    overlays = ["--config", str(tmp_path / "seen.yaml")]
    configs = [flag for path in files for flag in ("--config", str(path))] + arguments(CONFIGS / "srdiff.yaml")[2:]
    lightning = str(Path(sys.executable).with_name("lightning"))
    command = [str(tmp_path / "srun"), lightning, "fit", *configs, *overlays]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run1", "WANDB_MODE": "offline"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command += [f"--{name}={value}" for name, value in sampled.items()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]

    first, second = seen(tmp_path)
    assert first["weights"] == second["weights"] and not set(first["images"]) & set(second["images"])
    for rank in (first, second):
        assert all(str(value) in rank["region"] for value in sampled.values()), rank["region"]
    assert len(list(tmp_path.glob("runs/wandb/offline-run-*-run1"))) == len(list(tmp_path.glob("**/*.wandb"))) == 1
    (run_folder,) = (path for path in tmp_path.glob("runs/*/slurm-7-run1"))
    assert (run_folder / "checkpoints" / "last.ckpt").is_file()
