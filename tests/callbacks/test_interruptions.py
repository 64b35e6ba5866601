"""What is kept when a run ends, on a model of a few numbers."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.ema import EMA
from callbacks.interruptions import Interruptions, Stopped
from callbacks.nan_guard import NaNGuard, NonFiniteLossError
from datamodules.batch import Batch
from tests.callbacks.small import SmallData, SmallResolver, batch_of, trainer_of


class At(Callback):
    """Calls a function in a hook after some steps."""

    def __init__(self, hook: str, step: int, do: Any) -> None:
        def act(trainer: Any, *arguments: Any) -> None:
            if trainer.global_step == step:
                do()

        setattr(self, hook, act)


def fail() -> None:
    raise RuntimeError("as ordered")


def send(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


class Alike(SmallData):
    """Its training batches are alike, so that a run can go on at any of them."""

    def train_dataloader(self) -> Any:
        return DataLoader([batch_of("train/00", "train/01")] * 50, batch_size=None)  # type: ignore[arg-type]


def fit(folder: Path, *callbacks: Any, model: Any = None, resume: bool = False, **options: Any) -> Any:
    """Trains with checkpoints every 4 steps."""
    keeper = ModelCheckpoint(
        folder / "checkpoints", "{step}", save_last=True, every_n_train_steps=4, enable_version_counter=False
    )
    settings = {"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None, "enable_checkpointing": True}
    trainer = trainer_of(folder, *callbacks, Interruptions(), keeper, **(settings | options))
    trainer.fit(model or SmallResolver(), Alike(), ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None)
    return trainer


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


def test_the_last_step_is_kept_between_the_multiples(tmp_path: Path) -> None:
    fit(tmp_path)
    assert last(tmp_path)["global_step"] == 6
    assert (tmp_path / "checkpoints" / "step=4.ckpt").is_file()


def test_the_last_step_is_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def save(self: Any, checkpoint: Any, path: Any, **options: Any) -> None:
        written.append(Path(path).name)
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()

    monkeypatch.setattr("lightning.fabric.plugins.TorchCheckpointIO.save_checkpoint", save)
    fit(tmp_path, max_steps=4)
    assert written == ["step=4.ckpt", "last.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_its_code(number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, At("on_train_batch_start", 1, send(number)))
    assert stopped.value.code == 128 + number
    assert last(tmp_path)["global_step"] == 2
    assert signal.getsignal(number) == before


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, At("on_train_batch_start", 1, twice))
    assert stopped.value.code == 128 + signal.SIGINT
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_validation_batch_start", 3),
        ("on_validation_end", 3),
        ("on_train_batch_start", 3),
        ("on_before_zero_grad", 2),
        ("on_before_backward", 3),
    ],
)
def test_after_an_error_the_run_goes_on_exactly(hook: str, step: int, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder, ends in ((whole, []), (halves, [At(hook, step, fail)])):
        torch.manual_seed(0)
        if ends:
            with pytest.raises(RuntimeError, match="as ordered"):
                fit(folder, EMA(0.5), *ends)
            assert last(folder)["global_step"] == step
            assert last(folder)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == step
            fit(folder, EMA(0.5), resume=True)
        else:
            fit(folder, EMA(0.5))
    one, other = last(whole), last(halves)
    assert same(one, other) and one["global_step"] == other["global_step"] == 6
    for name, value in one["current_model_state"].items():
        assert torch.equal(value, other["current_model_state"][name])


def test_an_error_among_accumulated_batches_goes_back_to_the_step_before(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    batches = iter(range(100))
    options = {"accumulate_grad_batches": 2, "max_steps": 4, "val_check_interval": 4}

    class Third(Callback):
        def on_before_backward(self, *arguments: Any) -> None:
            if next(batches) == 3:
                fail()

    torch.manual_seed(0)
    fit(whole, **options)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="as ordered"):
        fit(halves, Third(), **options)
    assert last(halves)["global_step"] == 1
    assert last(halves)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == 2
    fit(halves, resume=True, **options)
    assert same(last(whole), last(halves))


class Ruined(SmallResolver):
    """Its weights become NaN in the third step."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"loss": outputs["loss"] * (float("nan") if batch_idx == 2 else 1)}


def test_weights_that_a_nan_has_ruined_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError):
        fit(tmp_path / "guarded", NaNGuard(), model=Ruined(), val_check_interval=9)
    assert not (tmp_path / "guarded" / "checkpoints").exists()
    with pytest.raises(Stopped):
        fit(tmp_path, At("on_train_batch_start", 2, send(signal.SIGTERM)), model=Ruined(), val_check_interval=9)
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr("lightning.fabric.plugins.TorchCheckpointIO.save_checkpoint", full)
    with pytest.raises(RuntimeError, match="as ordered"):
        fit(tmp_path, At("on_train_batch_start", 2, fail))
    assert "the state after step 2 is lost: no space" in capsys.readouterr().err


def test_a_validation_that_an_end_cut_off_is_repeated_as_a_whole(tmp_path: Path) -> None:
    validated: list[tuple[int, int]] = []

    class Count(Callback):
        def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            validated.append((trainer.global_step, index))

    with pytest.raises(Stopped):
        fit(tmp_path, Count(), At("on_validation_batch_start", 6, send(signal.SIGTERM)))
    assert last(tmp_path)["global_step"] == 6
    fit(tmp_path, Count(), resume=True)  # which had no step left
    assert validated == [(3, 0), (3, 1), (3, 2), (6, 0), (6, 0), (6, 1), (6, 2)]
    fit(tmp_path, Count(), resume=True)
    assert len(validated) == 7
