"""The contract of degradations: what is refused, and what randomness depends on."""

import numpy as np
import pytest
import torch

from datamodules.degradations.bicubic import Bicubic
from datamodules.degradations.degradation import generator


@pytest.mark.parametrize(
    ("hr", "keys", "named"),
    [
        (torch.rand(1, 3, 33, 32), ["div2k/0801"], "div2k/0801: 33x32 does not divide by scale 4; crop it to 32x32"),
        (torch.rand(2, 3, 32, 32), ["a"], "keys: 1 names for 2 images"),
        (torch.rand(1, 1, 32, 32), ["a"], "hr: expected"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a"], "hr: expected"),
    ],
)
def test_bad_input_is_named(hr: torch.Tensor, keys: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("[", r"\[")):
        Bicubic(4)(hr, keys=keys, epoch=0, seed=0)


def test_scale_must_shrink() -> None:
    with pytest.raises(ValueError, match="scale: 0"):
        Bicubic(0)


def test_an_empty_batch_stays_empty() -> None:
    assert Bicubic(4)(torch.rand(0, 3, 32, 32), keys=[], epoch=0, seed=0).shape == (0, 3, 8, 8)


def test_streams_differ_by_key_epoch_and_seed_only() -> None:
    def stream(key: str, epoch: int, seed: int) -> tuple[float, ...]:
        return tuple(generator(key, epoch=epoch, seed=seed).random(4))

    variants = [("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1), ("a/0", 0, 0)]
    assert len({stream(*variant) for variant in variants}) == len(variants)
    assert stream("a", 3, 2) == stream("a", 3, 2)


def test_first_draws_over_keys_are_uniform() -> None:
    drawn = np.array([generator(f"set/{i:04d}", epoch=0, seed=0).random() for i in range(4000)])
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
