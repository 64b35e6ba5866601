"""Data for generators: keys, sizes, shares of processes."""

from types import SimpleNamespace

import pytest
import torch

from datamodules.seeds import Seeds


def test_every_seed_is_asked_for_once_over_processes() -> None:
    keys = []
    for rank in range(3):
        data = Seeds(count=8, first=5, batch_size=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=3)  # type: ignore[assignment]
        loader = data.predict_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader)
        keys += [key for batch in batches for key in batch["key"]]
    assert sorted(keys) == [f"{seed:06d}" for seed in range(5, 13)]


def test_images_are_blank_and_of_the_sizes_asked_for() -> None:
    batch = next(iter(Seeds(count=1, size=16, final=64).predict_dataloader()))
    assert torch.equal(batch["lr"], -torch.ones(1, 3, 16, 16))
    assert torch.equal(batch["up"], -torch.ones(1, 3, 64, 64))
    assert next(iter(Seeds(count=1, size=16).predict_dataloader()))["up"].shape == (1, 3, 16, 16)


def test_a_final_size_that_no_cascade_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="final: 65 is not a multiple of size: 16"):
        Seeds(size=16, final=65)
