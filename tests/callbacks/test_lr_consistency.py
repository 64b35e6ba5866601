"""The score against the low-resolution image, logged."""

from pathlib import Path

import pytest
import torch

from callbacks.lr_consistency import LRConsistency
from lightning_modules.metrics.lr_consistency import lr_psnr
from tests.callbacks.small import SmallData, SmallResolver, batch_of, trainer_of


def test_the_mean_over_all_images_is_logged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method, data = SmallResolver(), SmallData()
    logged = trainer_of(tmp_path, LRConsistency()).validate(method, data, verbose=False)[0]
    expected = []
    for batch in data.val_dataloader():
        sr = ((method.validation_step(batch, 0)["sr"] + 1) * 127.5).round().clamp(0, 255).double() / 255
        expected += lr_psnr(sr, (batch["lr"].double() + 1) / 2).tolist()
    assert logged["val/lr_psnr"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_the_result_is_scored_as_its_file_would_hold_it() -> None:
    callback, batch = LRConsistency(), batch_of("a")
    callback.collect({"sr": torch.full_like(batch["hr"], 7.0)}, batch)
    white = lr_psnr(torch.ones_like(batch["hr"]).double(), (batch["lr"].double() + 1) / 2)
    assert callback.kept["a"] == pytest.approx(white.item())
