"""What all tests share: a cache and tiny weights of this test run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny.weights import write_tiny_weights

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No hub, no W&B, a cache of our own; `DIFFSR_TINY` names a folder of tiny weights."""
    folder = tmp_path_factory.mktemp("environment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFSR_CACHE", str(folder / "cache"))
        patch.setenv("DIFFSR_TINY", str(folder / "tiny"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("WANDB_MODE", "offline")
        write_tiny_weights(folder / "tiny")
        yield folder
