"""Published weights: found by file name, downloaded on first use, checked, and read without executing anything."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_modules.download import download

_log = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without a byte after which a download has failed


class WeightsError(OSError):
    """Weights that are missing or damaged; the message names file, source and option."""


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Attributes:
        name: Its file name, by which it is found.
        url: Where it can be downloaded; None where only by hand.
        sha256: Its digest or, as in file names of torchvision, the beginning of it; "" where none is published.
        also: Other file names under which the same weights are accepted, for instance with the unused layers left out.
    """

    name: str
    url: str | None
    sha256: str
    also: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Where downloaded weights are kept: `weights` in `$DIFFSR_CACHE`, else in `diffsr` of the XDG cache folder."""
    if "DIFFSR_CACHE" in os.environ:
        return Path(os.environ["DIFFSR_CACHE"]).expanduser() / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "diffsr" / "weights"


def folders() -> list[Path]:
    """Where weights are looked for: `$DIFFSR_WEIGHTS`, then `cache_folder`."""
    named = os.environ.get("DIFFSR_WEIGHTS")
    return [*([Path(named).expanduser()] if named else []), cache_folder()]


def obtain(
    file: WeightFile,
    given: str | None = None,
    *,
    needed_by: str,
    instead: str = "as `weights: FILE`",
    manual: str | None = None,
) -> Path:
    """The path of a file of weights: the given one, else found by name, else downloaded.

    The folder that `DIFFSR_WEIGHTS` names is searched first, then `cache_folder`. What is in neither is downloaded to
    the first of them that can be written to, by one process of each machine, while the others wait for it.

    `HF_HUB_OFFLINE=1` forbids all downloads. Where no sha256 is published, that of the first download is noted beside
    the file and compared later.

    Args:
        file: What is wanted.
        given: A path that the user gave; it is taken as it is, whatever its name and digest.
        needed_by: What needs the file, for the error: "LPIPS".
        instead: How a path can be given, for the error.
        manual: How the file is got by hand, for the error.

    Raises:
        WeightsError: the file is missing and cannot be downloaded, or has another digest.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise WeightsError(f"{path}: no such file, and {needed_by} was told to read its weights from it")
        return path

    found = find(file)
    if found is None:
        try:
            return _download_once(file)
        except (OSError, ValueError) as error:
            raise WeightsError(missing(file, needed_by, str(error), instead, manual)) from error
    if found.name == Path(file.name).name:
        _verify(found, file)
    return found


def offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")


def find(file: WeightFile) -> Path | None:
    """Where a file of weights is on this machine; None where it would have to be downloaded."""
    names = (file.name, *file.also)
    return next((folder / name for folder in folders() for name in names if (folder / name).is_file()), None)


def _writable(folder: Path) -> bool:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return os.access(there, os.W_OK)


def _download_once(file: WeightFile) -> Path:
    target = next(filter(_writable, folders()), cache_folder()) / file.name
    if file.url is None:
        raise OSError("no program can")
    if offline():
        raise OSError("HF_HUB_OFFLINE is set")

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_file():  # another process has brought it while this one waited
            return target
        _log.warning("%s: downloading %s", target, file.url)
        download(file.url, target, _TIMEOUT, file.sha256 or None, shown=True)
        if not file.sha256:
            _noted(target).write_text(f"{digest(target)}\n")
            _log.warning("%s: no sha256 is published for it; that of this download is noted and compared later", target)
    return target


def _noted(path: Path) -> Path:
    """Where the sha256 of a first download is noted."""
    return path.with_name(f"{path.name}.sha256")


def _verify(path: Path, file: WeightFile) -> None:
    wanted = file.sha256 or (_noted(path).read_text().strip() if _noted(path).is_file() else "")
    found = digest(path) if wanted else ""
    if not found.startswith(wanted):
        raise WeightsError(
            f"{path}: its sha256 is {found}, not {wanted}: the copy is damaged or another file. Delete it, so "
            f"that it is downloaded again from {file.url}, or give the file that you mean as `weights: FILE`"
        )


def missing(file: WeightFile, needed_by: str, reason: str, instead: str, manual: str | None) -> str:
    """What to do about weights that are not on this machine."""
    folder = os.environ.get("DIFFSR_WEIGHTS") or "DIFFSR_WEIGHTS (which is not set)"
    named = " or ".join((file.name, *file.also))
    return (
        f"{needed_by} needs the weights {named}, which are not in the folder {folder} and not in {cache_folder()}. "
        f"They could not be downloaded from {file.url or 'any address'} ({reason}). "
        f"{manual or 'Download the file elsewhere'} and put it into one of these folders, or give its path {instead}"
    )


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a state dict that `torch.save` wrote, on the CPU.

    Raises:
        WeightsError: the file is damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read as tensors, the file may be damaged ({reason})") from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds something else than tensors by name")
    return dict(content)
