from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks.ema import EMA
from tests.callbacks.small import SmallData, SmallResolver, trainer_of

DECAY = 0.7


class Recorder(Callback):
    """The trained weights after each step, and those that were validated."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.trained.append(weight_of(pl_module))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        self.validated.append(weight_of(pl_module))


def weight_of(module: LightningModule) -> Tensor:
    return module.get_parameter("network.weight").detach().clone()


def fit(
    folder: Path, *callbacks: Any, ckpt_path: Path | None = None, batch_size: int = 2, **options: Any
) -> SmallResolver:
    torch.manual_seed(0)
    method = SmallResolver()
    trainer = trainer_of(folder, *callbacks, **options)
    trainer.fit(method, SmallData(batch_size), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "saved.ckpt")
    return method


def averages(start: Tensor, trained: list[Tensor], decays: list[float]) -> list[Tensor]:
    found = [start]
    for weight, decay in zip(trained, decays, strict=True):
        found.append(decay * found[-1] + (1 - decay) * weight)
    return found[1:]


@pytest.mark.parametrize(
    ("ema", "decays"),
    [
        (EMA(DECAY, warmup=False), [DECAY] * 4),
        (EMA(DECAY), [0.1, 2 / 11, 3 / 12, 4 / 13]),
    ],
)
def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(
    tmp_path: Path, ema: EMA, decays: list[float]
) -> None:
    torch.manual_seed(0)
    start = weight_of(SmallResolver())
    plain, recorder = Recorder(), Recorder()
    fit(tmp_path / "plain", plain, max_steps=4, val_check_interval=2)
    method = fit(tmp_path / "ema", ema, recorder, max_steps=4, val_check_interval=2)

    for with_ema, without in zip(recorder.trained, plain.trained, strict=True):
        assert torch.equal(with_ema, without)
    expected = averages(start, plain.trained, decays)
    torch.testing.assert_close(recorder.validated[0], expected[1])
    torch.testing.assert_close(recorder.validated[-1], expected[3])
    torch.testing.assert_close(weight_of(method), expected[3])  # training leaves the averages


def test_only_an_optimizer_step_moves_the_average(tmp_path: Path) -> None:
    ema = EMA(DECAY)
    counts: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            counts.append(ema.state_dict()["updates"])

    fit(tmp_path, ema, Count(), max_epochs=1, accumulate_grad_batches=2)
    assert counts == [0, 1, 1, 2]


def test_a_checkpoint_holds_averages_to_use_and_raw_weights_to_train_on(tmp_path: Path) -> None:
    recorder = Recorder()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(tmp_path, EMA(DECAY, warmup=False), recorder, saver, max_steps=4, enable_checkpointing=True)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    torch.manual_seed(0)
    start = weight_of(SmallResolver())
    expected = averages(start, recorder.trained[:3], [DECAY] * 3)[-1]
    torch.testing.assert_close(saved["state_dict"]["network.weight"], expected)
    assert torch.equal(saved["current_model_state"]["network.weight"], recorder.trained[2])
    assert set(saved["current_model_state"]) == {"network.weight", "network.bias"}  # nothing frozen is copied
    assert "frozen.weight" in saved["state_dict"]


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, step: int) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=step, save_top_k=-1)
    options: dict[str, Any] = {"max_steps": 6, "check_val_every_n_epoch": 2, "batch_size": 8}  # a step is an epoch
    whole, resumed = Recorder(), Recorder()
    ended = fit(tmp_path / "whole", EMA(DECAY), whole, saver, enable_checkpointing=True, **options)
    checkpoint = tmp_path / f"step={step}.ckpt"
    ended_again = fit(tmp_path / "resumed", EMA(DECAY), resumed, ckpt_path=checkpoint, **options)
    assert len(resumed.trained) == 6 - step
    assert torch.equal(resumed.trained[-1], whole.trained[-1])
    assert torch.equal(resumed.validated[-1], whole.validated[-1])
    assert torch.equal(weight_of(ended_again), weight_of(ended))


def test_a_checkpoint_saved_while_averages_are_validated_is_the_same(tmp_path: Path) -> None:
    class SaveAmidValidation(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            trainer.save_checkpoint(tmp_path / "amid.ckpt")

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "after.ckpt")

    fit(tmp_path, EMA(DECAY), SaveAmidValidation(), max_steps=4)
    amid, after = (torch.load(tmp_path / name, weights_only=True) for name in ("amid.ckpt", "after.ckpt"))
    for part in ("state_dict", "current_model_state"):
        for name, value in after[part].items():
            assert torch.equal(amid[part][name], value)
    assert not torch.equal(after["state_dict"]["network.weight"], after["current_model_state"]["network.weight"])


def test_a_checkpoint_without_averages_starts_them_from_its_weights(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", max_steps=2)
    recorder = Recorder()
    checkpoint = tmp_path / "plain/saved.ckpt"
    fit(tmp_path / "ema", EMA(DECAY, warmup=False), recorder, ckpt_path=checkpoint, max_steps=4)
    expected = averages(weight_of(plain), recorder.trained, [DECAY] * 2)[-1]
    torch.testing.assert_close(recorder.validated[-1], expected)


def test_weights_only_checkpoints_are_refused(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(ValueError, match="save_weights_only: false"):
        fit(tmp_path, EMA(), saver, max_steps=1, enable_checkpointing=True)


def test_a_checkpoint_of_other_trained_parameters_is_refused(tmp_path: Path) -> None:
    class Thawed(SmallResolver):
        def __init__(self) -> None:
            super().__init__()
            self.frozen.requires_grad_(True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)

    fit(tmp_path, EMA(), ModelCheckpoint(tmp_path, filename="a"), max_steps=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"averages other parameters.*frozen\.bias, frozen\.weight"):
        trainer_of(tmp_path, EMA(), max_steps=2).fit(Thawed(), SmallData(), ckpt_path=tmp_path / "a.ckpt")
