"""A validation image that cannot be used is named before the first step."""

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from callbacks.image_metrics import ImageMetrics
from callbacks.validation_check import ValidationCheck
from tests.callbacks.small import SmallData, SmallResolver, batch_of, trainer_of


class Uneven(SmallData):
    """One of its validation images is small."""

    scale = 2

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def val_dataloader(self) -> Any:
        images: Any = [batch_of("val/00"), batch_of("val/small", height=self.size, width=40)]
        return DataLoader(images, batch_size=None)


class Coarse(SmallResolver):
    smallest = 16


def train(folder: Path, model: Any, size: int) -> Any:
    trainer = trainer_of(folder, ImageMetrics(), ValidationCheck(), max_epochs=1)
    try:
        trainer.fit(model, Uneven(size))
    finally:
        assert trainer.global_step == (4 if size == 32 else 0)


def test_an_image_below_the_network_is_named_before_the_first_step(tmp_path: Path) -> None:
    train(tmp_path, Coarse(), 32)
    with pytest.raises(ValueError, match=r"val/small: 40x14 pixels are too few to .*: the network needs 16"):
        train(tmp_path, Coarse(), 14)


def test_an_image_below_a_score_is_named_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"val/small: 40x14 pixels are too few for ssim_y.* beside the border of 2"):
        train(tmp_path, SmallResolver(), 14)
