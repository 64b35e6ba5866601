"""What a training will need, and what a machine has."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_modules.config import CONFIGS
from lightning_modules.config_errors import ConfigError
from lightning_modules.evaluation.cost import parameters
from lightning_modules.running import machine, planning
from tests.tiny.experiments import arguments

TINY = arguments(CONFIGS / "quickstart.yaml")


def test_a_plan_says_what_the_whole_training_needs_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    planning.main([*TINY, "--steps", "4", "--trainer.max_steps", "3600", "--trainer.val_check_interval", "600"])
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    assert list(tmp_path.iterdir()) == []

    step = float(re.findall(r"step +([\d.e-]+) s", said["step"])[0])
    validation = float(re.findall(r"validation +([\d.e-]+) s for 2 batches, every 600", said["validation"])[0])
    hours = float(re.findall(r"in all +([\d.e-]+) hours for 3600 steps and 6 validations", said["in"])[0])
    assert hours == pytest.approx(step + 6 * validation / 3600, rel=0.05)
    assert re.search(r"memory +[\d.]+ GiB", said["memory"]) and re.search(r"checkpoint +[\d.]+ MB", said["checkpoint"])


def test_a_plan_counts_what_is_trained_and_what_is_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trial = planning.Trial([*TINY, "--trainer.max_steps", "9"], 3, validate=False)
    counted = parameters(trial.model)
    frozen = sum(value.numel() for value in trial.model.parameters() if not value.requires_grad)
    lines = list(planning.report(trial))
    assert f"{counted['trained_parameters']:,} trained, {frozen:,} frozen" in lines[1] and frozen
    assert not any(line.startswith("validation") for line in lines)
    assert len(trial.measured.steps) == 3 and trial.measured.checkpoint > 4 * counted["trained_parameters"]


@pytest.mark.parametrize("limit", [16, 17, 100, 333])
def test_the_largest_batch_on_a_gpu_is_searched(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory_of(options: Any, batch: int) -> float:
        if batch > limit:
            raise torch.OutOfMemoryError
        return float(batch)

    monkeypatch.setattr(planning, "_memory_of", memory_of)
    config = {"subcommand": "fit", "fit": {planning.BATCH: 16}}
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")))
    trial: Any = SimpleNamespace(config=Config(config), trainer=trainer)
    found = re.fullmatch(r"(\d+) \((\d+) does not fit\)", planning.largest_batch([], trial))
    assert found is not None
    fits, too_large = int(found[1]), int(found[2])
    assert fits <= limit < too_large and too_large - fits <= max(limit // 16, 1)


class Config(dict[str, Any]):
    @property
    def subcommand(self) -> str:
        return "fit"


def test_the_largest_batch_on_a_cpu_is_computed_from_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_memory_of", lambda options, batch: 1000.0 + 10 * batch)
    monkeypatch.setattr(planning, "available_memory", lambda: 1000 * 2**20)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    measured = SimpleNamespace(memory={"peak_memory_mib": 1160.0})
    trial: Any = SimpleNamespace(config=Config(fit={planning.BATCH: 16}), trainer=trainer, measured=measured)
    assert planning.largest_batch([], trial) == "about 122, from 10.0 MiB an image and 1000 MiB free"


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="--steps: must be above 2"):
        planning.main(["--steps", "2"])


def test_the_doctor_looks_at_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "niqe.mat").touch()
    (tmp_path / "data" / "div2k").mkdir(parents=True)
    monkeypatch.setattr(machine, "ENOUGH_DISK", float("inf"))
    machine.main()
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said and "niqe.mat" in said
    assert "data/div2k: there (df2k_x4, div2k_x4)" in said and "data/realsr: not there" in said
    assert re.search("note +disk: less than inf GB are free", said)
    assert all(
        re.search(f"^{what} ", said, re.MULTILINE) for what in ("device", "precision", "processor", "memory", "W&B")
    )
