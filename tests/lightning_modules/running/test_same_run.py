"""The comparison of two runs sees every difference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules.checkpoint import save
from lightning_modules.config_errors import ConfigError
from lightning_modules.running import verify_resume
from lightning_modules.running.same_run import differences


def content() -> dict[str, Any]:
    return {
        "state_dict": {"w": torch.ones(3)},
        "current_model_state": {"w": torch.zeros(3)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(3)}}}],
        "lr_schedulers": [{"last_epoch": 4}],
        "global_step": 4,
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": {"processed": 4}}}},
        "callbacks": {"EMA": {"updates": 4}, "ModelCheckpoint{}": {"dirpath": "elsewhere"}},
    }


def write(run: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None, log: str = "0,1\n1,2\n") -> Path:
    made = content()
    change(made)
    save(made, run / "checkpoints" / "last.ckpt")
    (run / "metrics.csv").write_text("step,loss\n" + log)
    return run


def test_the_same_run_has_no_difference(tmp_path: Path) -> None:
    assert not differences(write(tmp_path / "a"), write(tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made["state_dict"]["w"].add_(1e-7), "weights: state_dict.w"),
        (lambda made: made["current_model_state"].clear(), "weights: current_model_state.w"),
        (lambda made: made["optimizer_states"][0]["state"][0]["exp_avg"].mul_(2), "optimizer: optimizer_states.0"),
        (lambda made: made["lr_schedulers"][0].update(last_epoch=5), "optimizer: lr_schedulers.0.last_epoch (4 and 5)"),
        (lambda made: made.update(global_step=5), "counters: global_step (4 and 5)"),
        (lambda made: made["callbacks"]["EMA"].update(updates=5), "averages: callbacks.EMA.updates (4 and 5)"),
    ],
)
def test_a_difference_is_named(change: Any, said: str, tmp_path: Path) -> None:
    (found,) = differences(write(tmp_path / "a"), write(tmp_path / "b", change))
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("0,1\n", "step 1: missing in one"),
        ("0,1\n1,3\n", "step 1: loss 2 and 3"),
        ("0,1\n1,2\n1,2\n", "a step stands there twice"),
    ],
)
def test_a_different_log_is_named(log: str, said: str, tmp_path: Path) -> None:
    (found,) = differences(write(tmp_path / "a"), write(tmp_path / "b", log=log))
    assert said in found


def test_verification_compares_a_run_with_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts: list[tuple[str, list[str], int]] = []

    def start(arguments: Any, runs: Path, more: list[str], ends: int = 0) -> None:
        starts.append((runs.name, more, ends))
        lost = runs.name == "halves" and "lose" in arguments
        write(runs / "run" / "version_0", lambda made: made.update(global_step=3) if lost else None)

    monkeypatch.setattr(verify_resume, "_run", start)
    assert verify_resume.verify([], "6") == 0
    assert [(name, ends) for name, _, ends in starts] == [("alone", 0), ("halves", -9), ("halves", 0)]
    assert starts[1][1][:4] == ["--trainer.max_steps", "6", "--checkpoint_every", "3"]
    assert starts[1][1][-1] == "--trainer.callbacks.init_args.step=4"
    assert starts[2][1][-2:] == ["--ckpt_path", "last"]
    assert "exactly the run that was left alone" in capsys.readouterr().out
    assert verify_resume.verify(["lose"], "6") == 1
    assert "counters    1 differ, such as counters: global_step (4 and 3)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="at least 4; got 3"):
        verify_resume.verify([], "3")
