"""Warnings of a run that goes on."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.watchdog import Watchdog
from datamodules.batch import Batch
from tests.callbacks.small import SmallData, SmallResolver, batch_of, trainer_of


class Told(SmallResolver):
    """Its losses and its colours are what the test says."""

    def __init__(self, losses: list[float], colours: list[float]) -> None:
        super().__init__(learning_rate=0.0)
        self.losses, self.colours = losses, colours

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"loss": outputs["loss"] * 0 + self.losses[batch_idx]}

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("val/colour_error_r", self.colours.pop(0))


class Data(SmallData):
    """Batches that come after a while."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.pause = pause

    def train_dataloader(self) -> Any:
        batches = [batch_of(f"train/{index:02d}") for index in range(8)]

        def join(samples: list[Any]) -> Any:
            time.sleep(self.pause)
            return samples[0]

        return DataLoader(batches, batch_size=1, collate_fn=join)  # type: ignore[arg-type]


def train(folder: Path, losses: list[float], colours: list[float], pause: float = 0.0, **limits: Any) -> list[str]:
    """The warnings of a run of eight steps with two validations."""
    limits = {"window": 4, "waiting": 0.99, **limits}
    with pytest.warns() as warned:
        trainer_of(folder, Watchdog(**limits), max_epochs=1, val_check_interval=4).fit(
            Told(losses, colours), Data(pause)
        )
    return [str(warning.message) for warning in warned]


def test_a_sudden_loss_is_written_down_with_its_images(tmp_path: Path) -> None:
    said = train(tmp_path, [1, 2, 1, 1, 1, 50, 2, 1], [0, 0])
    records = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert records == [{"step": 6, "loss": 50.0, "usual": 1.0, "key": ["train/05"]}]
    assert any("the loss of step 6 is 50, usually 1" in line for line in said)


def test_an_even_loss_is_none(tmp_path: Path) -> None:
    said = train(tmp_path, [50, 2, 1, 1, 3, 1, 9, 1], [0, 0])
    assert not (tmp_path / "spikes.jsonl").exists()
    assert not any("the loss of step" in line or "drift" in line or "waiting" in line for line in said)


def test_colours_that_drift_are_named(tmp_path: Path) -> None:
    said = train(tmp_path, [1.0] * 8, [0.5, -3.0])
    assert any("val/colour_error_r was 0.50 grey levels and is 3.00 at step 8" in line for line in said)


def test_waiting_for_data_is_named(tmp_path: Path) -> None:
    def shares(pause: float) -> list[str]:
        said = train(tmp_path / str(pause), [1.0] * 8, [0, 0], pause=pause, waiting=0.8)
        return [line for line in said if "went into waiting for data" in line]

    assert len(shares(0.5)) == 2, "each step takes a few milliseconds, and its batch half a second"


@pytest.mark.parametrize("limits", [{"spike": 0}, {"waiting": 1.5}, {"window": -1}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Watchdog(**limits)  # type: ignore[arg-type]
