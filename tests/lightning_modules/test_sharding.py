"""What DDP reduces, and which parts of a network are collected by themselves; programs of processes of their own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from datamodules.batch import make_batch
from lightning_modules.config import configured_model
from lightning_modules.sharding import blocks, like, whole
from tests.tiny.experiments import CONFIGS, arguments

ROOT = CONFIGS.parent


def program(name: str, *typed: str) -> str:
    """What `python -m tests.cluster.NAME` prints; it must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", f"tests.cluster.{name}", *typed]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def test_two_processes_train_as_one_and_test_alike() -> None:
    """SkipDiff, whose update sees the batch in parts; `make test-processes` does it for every method, for longer."""
    row = re.search(
        r"\| skipdiff_sr3_x4 \| 2 \| (\S+) \|  \| (\S+) \| 2 images, equal",
        program("processes", "8", "2", "skipdiff_sr3_x4"),
    )
    assert row and float(row[1]) <= 1e-5 and float(row[2]) > 10 * float(row[1])


def test_two_processes_that_share_the_weights_train_and_resume_as_one() -> None:
    assert program("sharded", "sr3").count("| sr3 |") == 1


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Step(nn.Module):
    """The loss of a method, as DDP calls it."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any) -> Tensor:
        return torch.stack(list(self.method.training_losses(batch).losses.values())).sum()


@pytest.mark.parametrize("name", ["dossr_sd21", "srdiff"])
def test_ddp_reduces_nothing_of_frozen_parts(name: str, alone: None, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"compose: {[str(Path(path).resolve()) for path in arguments(CONFIGS / f'{name}.yaml')[1::2]]}\n")
    method: Any = configured_model(config)[0]
    if name == "srdiff":
        method.encoder.requires_grad_(False)
    trained, every = (
        sum(value.numel() for value in method.parameters() if value.requires_grad or kind) for kind in (False, True)
    )
    reduced: list[int] = []

    def count(state: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        reduced.append(bucket.buffer().numel())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    step = DistributedDataParallel(Step(method))
    step.register_comm_hook(None, count)
    batch = make_batch(torch.rand(1, 3, 16, 16), ["image"], scale=4, kernel="matlab")
    step({**batch, "hr": torch.rand(1, 3, 64, 64) * 2 - 1}).backward()
    assert sum(reduced) == trained < every


def test_blocks_are_the_large_entries_of_lists() -> None:
    small, large = nn.Conv2d(1, 1, 1), nn.Conv2d(8, 8, 3)
    inner = nn.Sequential(nn.Conv2d(8, 8, 3), small)
    network = nn.ModuleDict(
        {"levels": nn.ModuleList([nn.ModuleList([large, small]), inner]), "out": nn.Conv2d(8, 8, 3)}
    )
    assert list(blocks(network, 500)) == [large, inner]


def test_tensors_that_are_not_spread_stay_as_they_are() -> None:
    value = torch.ones(2)
    assert whole({"a": [value], "b": 3}) == {"a": [value], "b": 3}
    assert like(value, torch.zeros(2)) is value and like("word", None) == "word"
