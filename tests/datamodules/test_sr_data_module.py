"""What becomes of the images: targets and degradations of training and of evaluations, and what they depend on."""

import logging
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.base import SRDataModule
from datamodules.batch import Batch
from datamodules.degradations.blur import unsharp_mask
from datamodules.degradations.degradation import Degradation
from datamodules.degradations.realesrgan import RealESRGAN
from datamodules.stream.sources import Source
from tests.datamodules.trees import Numbers


class Pictures(SRDataModule):
    """Pictures in memory, all of one size."""

    def source(self, split: str) -> Source:
        return Numbers([3, 2], size=(104, 120))


def pictures(**options: Any) -> Pictures:
    return Pictures(**{"crop": 96, "batch_size": 2, "num_workers": 0, "degradation": RealESRGAN()} | options)


def training(data: SRDataModule, count: int) -> list[Batch]:
    return [data.on_after_batch_transfer(raw, 0) for raw in islice(data.train_dataloader(), count)]


def validation(data: SRDataModule) -> dict[str, tuple[Tensor, Tensor]]:
    """HR and LR images by key."""
    batches = [data.on_after_batch_transfer(raw, 0) for raw in data.val_dataloader()]
    return {key: (b["hr"][i], b["lr"][i]) for b in batches for i, key in enumerate(b["key"])}


def photographs() -> dict[str, Tensor]:
    source = Numbers([3, 2], size=(104, 120))
    samples = [source.sample(index, paired=False) for index in range(len(source))]
    return {sample.key: torch.from_numpy(sample.hr.copy()).permute(2, 0, 1) / 127.5 - 1 for sample in samples}


def test_lr_of_an_evaluation_is_a_function_of_the_key_alone() -> None:
    one = validation(pictures(seed=0))
    other = validation(pictures(seed=7, val_batch_size=3, num_workers=1))
    assert list(one) == list(other) and len(one) == 5
    for key, (_, lr) in one.items():
        assert torch.equal(lr, other[key][1])


def test_an_evaluation_compares_with_the_photograph_and_training_with_the_sharpened_one() -> None:
    expected = photographs()
    for key, (hr, _) in validation(pictures()).items():
        torch.testing.assert_close(hr, expected[key])
    plain = pictures(degradation=RealESRGAN(gt_usm=False))
    for sharp, photo in zip(training(pictures(), 2), training(plain, 2), strict=True):
        torch.testing.assert_close(sharp["hr"], unsharp_mask((photo["hr"] + 1) / 2) * 2 - 1, rtol=0, atol=1e-5)
        assert not torch.equal(sharp["hr"], photo["hr"])


@pytest.mark.parametrize("degradation", [None, RealESRGAN()])
def test_training_depends_on_the_seed(degradation: Degradation | None) -> None:
    first, again, other = (training(pictures(seed=seed, degradation=degradation), 3) for seed in (0, 0, 1))
    assert all(torch.equal(a["lr"], b["lr"]) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a["lr"], b["lr"]) for a, b in zip(first, other, strict=True))


def test_the_seed_is_that_of_the_run_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert pictures().seed == pictures().train_crop.seed == 5
    assert pictures(seed=3).seed == pictures(seed=3).train_crop.seed == 3


def test_any_step_can_be_looked_at_again() -> None:
    straight, again = training(pictures(), 6), pictures()
    again.load_state_dict({"batches": 4})
    for one, other in zip(straight[4:], training(again, 2), strict=True):
        assert (
            one["key"] == other["key"] and torch.equal(one["lr"], other["lr"]) and torch.equal(one["hr"], other["hr"])
        )


def test_a_degradation_beside_packed_lr_images_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pictures(paired=True)
    assert "paired: the LR images of the set are used, the degradation is not" in caplog.text
