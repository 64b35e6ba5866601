"""What results depend on beside the scores: model, data, checkpoint, code and machine."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from lightning_modules.weight_files import digest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lightning_modules", "datamodules", "callbacks")


@runtime_checkable
class DescribesItsImages(Protocol):
    """Data that say how their images are made."""

    def protocol(self) -> dict[str, Any]:
        """What the scores depend on: crop, degradation, enlargement."""


def provenance(trainer: Trainer, method: LightningModule) -> dict[str, Any]:
    """The entries `method`, `checkpoint`, `data` and `run` of a results file.

    They are equal on one process and on several. The images' hashes are added to `data` once they are known.
    """
    data = getattr(trainer, "datamodule", None)
    path = trainer.ckpt_path
    return {
        "method": described_method(method),
        "checkpoint": {"path": str(path), "sha256": file_digest(str(path))}
        if path
        else {"path": None, "sha256": weights_digest(method)},
        "data": {} if data is None else described_data(data),
        "run": {
            "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
            "precision": str(trainer.precision),
            "device": device_name(trainer.strategy.root_device),
            **code(),
        },
    }


def described_method(method: LightningModule) -> dict[str, Any]:
    """Class, sampler and the whole config of a method, which holds its steps, region, guidance and tiles."""
    config = plain(_public(dict(method.hparams)))
    kind = type(method)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "name": _display_name(kind.__name__, config),
        "sampler": cast(Any, method).protocol(),
        "config": config,
        "config_sha256": sha256_of(config),
    }


def _display_name(kind: str, config: Mapping[str, Any]) -> str:
    """Such as "SR3 + YODA + SelfAttentionGuidance"."""
    parts = [config.get("region"), *(config.get("guidance") or [])]
    named = [str(part["class_path"]).rpartition(".")[2] for part in parts if isinstance(part, dict)]
    return " + ".join([kind, *named])


def described_data(data: LightningDataModule) -> dict[str, Any]:
    """Class and config of a data module, and where its low-resolution images come from."""
    config = plain(_public(dict(data.hparams)))
    paired = bool(getattr(data, "paired", False))
    return {
        "class": f"{type(data).__module__}.{type(data).__qualname__}",
        "config": config,
        "config_sha256": sha256_of(config),
        **(plain(data.protocol()) if isinstance(data, DescribesItsImages) else {}),
        "degradation_seed": None if paired or not hasattr(data, "degradation") else 0,  # and the image's key
        "scale": getattr(data, "scale", None),
    }


def code() -> dict[str, Any]:
    """Versions of this project and of torch, the commit, and a hash of the project's Python files."""
    try:
        own = version("diffsr")
    except PackageNotFoundError:  # it runs from its folder without being installed
        own = None
    return {"torch": torch.__version__, "diffsr": own, "commit": _commit(), "sources_sha256": _sources()}


def device_name(device: torch.device) -> str:
    """The name of a GPU, otherwise the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@lru_cache
def file_digest(path: str) -> str:
    """The sha256 of a file that does not change while the process runs."""
    return digest(Path(path))


def weights_digest(method: nn.Module) -> str:
    """The sha256 of a method's weights and their names, for a model that comes from no file."""
    found = hashlib.sha256()
    for name, value in sorted(method.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@lru_cache
def _sources() -> str:
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sha256_of({str(path.relative_to(ROOT)): digest(path) for path in files})


@lru_cache
def _commit() -> str | None:
    """The commit that is checked out, with "+" where files differ from it; None outside of a repository."""
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")


def plain(value: Any) -> Any:
    """A config as JSON can hold it; what was built in Python is named by its class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def sha256_of(value: Any) -> str:
    """The digest of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
