"""Published weights: found by file name, downloaded on first use, checked, and read without executing anything."""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.request import urlopen

import torch
from filelock import FileLock
from rich.progress import wrap_file
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_log = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without a byte after which a download has failed


class WeightsError(OSError):
    """Weights that are missing or damaged; the message names file, source and option."""


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Attributes:
        name: Its file name, by which it is found.
        url: Where it can be downloaded.
        sha256: Its digest or, as in file names of torchvision, the beginning of it; "" where none is published.
        also: Other file names under which the same weights are accepted, for instance with the unused layers left out.
    """

    name: str
    url: str
    sha256: str
    also: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Where downloaded weights are kept: `weights` in `$DIFFSR_CACHE`, else in `diffsr` of the XDG cache folder."""
    if "DIFFSR_CACHE" in os.environ:
        return Path(os.environ["DIFFSR_CACHE"]).expanduser() / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "diffsr" / "weights"


def obtain(file: WeightFile, given: str | None = None, *, needed_by: str) -> Path:
    """The path of a file of weights: the given one, else found by name, else downloaded.

    The folder that `DIFFSR_WEIGHTS` names is searched first, then `cache_folder`. What is in neither is downloaded to
    the cache by one process of each machine, while the others wait for it. `HF_HUB_OFFLINE=1` forbids all downloads.

    Args:
        file: What is wanted.
        given: A path that the user gave; it is taken as it is, whatever its name and digest.
        needed_by: What needs the file, for the error: "LPIPS".

    Raises:
        WeightsError: the file is missing and cannot be downloaded, or has another digest.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise WeightsError(f"{path}: no such file, and {needed_by} was told to read its weights from it")
        return path

    found = _find(file) or _download_once(file, needed_by)
    if found.name == file.name:
        _verify(found, file)
    return found


def _find(file: WeightFile) -> Path | None:
    folders = [Path(os.environ["DIFFSR_WEIGHTS"]).expanduser()] if os.environ.get("DIFFSR_WEIGHTS") else []
    folders.append(cache_folder())
    names = (file.name, *file.also)
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _download_once(file: WeightFile, needed_by: str) -> Path:
    target = cache_folder() / file.name
    try:
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            raise OSError("HF_HUB_OFFLINE is set")
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():  # another process may have brought it while this one waited
                _download(file, target)
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(missing(file, needed_by, str(error))) from error
    return target


def _download(file: WeightFile, target: Path) -> None:
    """Writes the file beside its place and moves it there when it is complete and checked."""
    part = target.with_name(f"{target.name}.part")
    _log.warning("%s: downloading %s", target, file.url)
    try:
        with urlopen(file.url, timeout=_TIMEOUT) as answer, part.open("wb") as written:
            length = answer.headers.get("Content-Length") if isinstance(answer, HTTPResponse) else None
            with wrap_file(answer, total=int(length or 0), description=file.name) as content:
                shutil.copyfileobj(content, written, 1 << 20)
        _verify(part, file)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _verify(path: Path, file: WeightFile) -> None:
    found = digest(path)
    if not found.startswith(file.sha256):
        raise WeightsError(
            f"{path}: its sha256 is {found}, not {file.sha256}: the copy is damaged or another file. Delete it, so "
            f"that it is downloaded again from {file.url}, or give the file that you mean as `weights: FILE`"
        )


def missing(file: WeightFile, needed_by: str, reason: str) -> str:
    """What to do about weights that are not on this machine."""
    folder = os.environ.get("DIFFSR_WEIGHTS") or "DIFFSR_WEIGHTS (which is not set)"
    named = " or ".join((file.name, *file.also))
    return (
        f"{needed_by} needs the weights {named}, which are not in the folder {folder} and not in {cache_folder()}. "
        f"They could not be downloaded from {file.url} ({reason}). Download the file elsewhere and put it into one of "
        "these folders, or give its path as `weights: FILE`"
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
