"""A skip policy under the names of SkipDiff's released code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import MeanAbsoluteError

from lightning_modules.checkpoint import CheckpointError
from lightning_modules.published.importing import import_weights
from lightning_modules.skipdiff import SkipDiff
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.ppo import Objective
from lightning_modules.skipping.reward import MetricTerm, Reward

SMALL: dict[str, Any] = {"channels": (4, 4), "kernels": (5, 3), "resize": 16}
RELEASED: dict[str, Any] = {"hidden": None, "norm": "batch", "decisions": None}


def skipdiff(base: Path, **policy: Any) -> SkipDiff:
    reward = Reward([MetricTerm(MeanAbsoluteError(), weight=1.0)])
    return SkipDiff(str(base), SkipPolicy(**SMALL, **policy), reward, Objective())


def test_a_policy_in_the_released_names_is_imported(isolated_environment: Path, tmp_path: Path) -> None:
    base = isolated_environment / "tiny" / "sr3_cosine.ckpt"
    released = SkipPolicy(**SMALL, **RELEASED)
    torch.save(released.state_dict(), tmp_path / "policy.pth")
    model = skipdiff(base, **RELEASED)
    own = {name: value.clone() for name, value in model.named_buffers() if "." not in name}
    import_weights(model, tmp_path / "policy.pth")
    for key, value in released.state_dict().items():
        assert torch.equal(model.policy.state_dict()[key], value)
    assert "base_fingerprint" in own
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in own.items())

    other = skipdiff(base, hidden=32, norm="none")
    with pytest.raises(CheckpointError, match=r"policy.pth: the weights do not fit SkipDiff"):
        import_weights(other, tmp_path / "policy.pth")
