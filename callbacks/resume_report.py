"""Says of a resumed run whether it goes on exactly, and if not, why."""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

PACKAGES = ("lightning_modules", "datamodules", "callbacks")


class ResumeReport(Callback):
    """Keeps in a checkpoint what decides whether further steps are the same to the last bit, and compares it.

    The log of a resumed run then says "exactly" or "statistically": the run continues with all its state, but its next
    steps are not those that it would have had, because of what is listed.
    """

    def __init__(self) -> None:
        self._before: dict[str, str] = {}
        self._now: dict[str, str] = {}
        self._resumes = False  # not where training begins with the weights of an export

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the level that a resumed run reaches."""
        data = getattr(trainer, "datamodule", None)
        self._now = {
            "processes": str(trainer.world_size),
            "batch_size": str(getattr(data, "batch_size", "unknown")),
            "accumulate_grad_batches": str(trainer.accumulate_grad_batches),
            "precision": str(trainer.precision),
            "device": device_name(pl_module.device),
            "torch": str(torch.__version__),
            "seed": os.environ.get("PL_GLOBAL_SEED", "0"),
            "code": code(),
        }

        if not self._resumes:
            return
        changed = [
            f"{name} {self._before.get(name, 'unknown')} -> {value}"
            for name, value in self._now.items()
            if self._before.get(name) != value
        ]
        level = f"statistically ({', '.join(changed)})" if changed else "exactly"
        rank_zero_info(f"the run goes on {level} after step {trainer.global_step}")

    def state_dict(self) -> dict[str, Any]:
        """What is compared."""
        return dict(self._now or self._before)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What the checkpoint was written with."""
        self._before = state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Forgets an earlier checkpoint."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._before, self._resumes = {}, bool(checkpoint.get("optimizer_states"))


def device_name(device: torch.device) -> str:
    """The name of a GPU; "cpu" otherwise."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def code() -> str:
    """A digest of this project's source files."""
    digest, root = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
