"""Writes WebDataset shards: `{name}-{split}-{000000..N}.tar` and, beside them, a `dataset.json`.

A sample is `key.hr.png`, for pairs `key.lr.png`, and `key.json` (source file, box). A shard appears under its name only
when it is complete, so that a killed run continues with the missing ones. The same files and settings give the same
bytes.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from glob import escape
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, Literal

from filelock import FileLock
from rich.progress import track
from webdataset.writer import TarWriter

from datamodules.images import ImageError
from datamodules.prepare.samples import PlannedImage, PlannedSample, encode
from datamodules.stream.shards import read_index
from datamodules.stream.sources import printable

_log = logging.getLogger(__name__)
_SHOWN_FROM = 1000  # samples, from which on reading the files takes long enough for a progress bar


class PackError(ValueError):
    """The set cannot be packed; the message names the file or the setting and the way out."""


@dataclass(frozen=True)
class SplitSettings:
    """What one split of a packed set is called and how it is cut into shards.

    Attributes:
        name: of the set; the first part of every key.
        split: "train", "val", "test", ...
        per_shard: samples in a shard. Remote shards should outnumber the loading processes.
        licence: noted in `dataset.json`.
        leave_out: name unreadable images and continue without them, instead of stopping.
    """

    name: str
    split: str
    per_shard: int = 256
    licence: str = ""
    leave_out: bool = False

    def __post_init__(self) -> None:
        """Refuses what names of sets cannot hold.

        Raises:
            PackError: the name or the split is empty, or would be read as a path, several sets or a shard.
        """
        for what, value in (("name", self.name), ("split", self.split)):
            if not value or re.search(r"[/+]|\.tar", value):
                raise PackError(f"{what}: {value!r} is no name for a set; give one without '/', '+' and '.tar'")

    @property
    def prefix(self) -> str:
        """What the shards' names begin with."""
        return f"{self.name}-{self.split}"


def write_split(
    samples: Sequence[PlannedSample],
    out: Path,
    settings: SplitSettings,
    *,
    workers: int = 1,
    replace: Literal["never", "changed", "always"] = "never",
) -> int:
    """Writes the shards of one split and lists them in `dataset.json`; finished shards are kept.

    Args:
        samples: what to pack, in order.
        out: folder for the shards.
        settings: names and sizes.
        workers: processes.
        replace: when shards of this split are written anew: never, if they were packed from other files or with other
            settings, or always.

    Returns:
        How many samples were packed: unreadable ones may have been left out.

    Raises:
        PackError: there is no sample, two samples have the same key, an image is unreadable, the disk is full, or `out`
            holds this split packed from other files or with other settings, which are not to be replaced.
    """
    _check_keys(samples)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / f".{settings.prefix}.lock"):
        fingerprint = _fingerprint(samples, settings)
        finished = _finished(out, settings)
        if finished is not None and finished["fingerprint"] == fingerprint and replace != "always":
            return int(finished["samples"])
        _start(out, settings, fingerprint, replace)
        entry = _split_entry(settings, fingerprint, list(_write_shards(samples, out, settings, workers)))
        _update_description(out, settings, entry)
    return int(entry["samples"])


def summary(settings: SplitSettings, out: Path, images: int, samples: Sequence[PlannedSample], packed: int) -> str:
    """The last line of a command: what was packed of how many images, and what was left out.

    Args:
        settings: of the split.
        out: folder of the shards.
        images: how many HR images there were.
        samples: what was planned; images that could not be planned are missing.
        packed: how many samples were packed.
    """
    unplanned, unread = images - len({sample.hr.path for sample in samples}), len(samples) - packed
    missing = [f"{number} {what}" for number, what in ((unplanned, "images"), (unread, "samples")) if number]
    left_out = f"; left out: {' and '.join(missing)}, named above" if missing else ""
    return f"{packed} samples of {settings.prefix} ({images} images) are in {out}{left_out}"


def _check_keys(samples: Sequence[PlannedSample]) -> None:
    if not samples:
        raise PackError("nothing to pack")
    seen: dict[str, Path] = {}
    for sample in samples:
        if sample.key in seen:
            raise PackError(f"{seen[sample.key]} and {sample.hr.path} have the same key {sample.key!r}: rename one")
        seen[sample.key] = sample.hr.path


def _fingerprint(samples: Sequence[PlannedSample], settings: SplitSettings) -> str:
    """A digest of everything that is packed: the content of each file, what is taken of it, and the settings."""
    digest = cache(_digest)

    def described(image: PlannedImage) -> list[Any]:
        return [digest(image.path), image.box, image.side, image.resample]

    shown = track(samples, f"looking at what is packed into {settings.prefix}", disable=len(samples) < _SHOWN_FROM)
    listed = [[sample.key, described(sample.hr), sample.lr and described(sample.lr)] for sample in shown]
    return hashlib.sha256(json.dumps([asdict(settings), listed]).encode()).hexdigest()


def _digest(path: Path) -> str:
    """The sha256 of a file.

    Raises:
        PackError: it cannot be read.
    """
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise PackError(f"{path}: cannot be read: {error.strerror or error}") from error


def _listed_splits(out: Path) -> list[dict[str, Any]]:
    path = out / "dataset.json"
    return list(json.loads(path.read_text())["splits"]) if path.exists() else []


def _is_same_split(entry: dict[str, Any], settings: SplitSettings) -> bool:
    return bool(entry["name"] == settings.name and entry["split"] == settings.split)


def _finished(out: Path, settings: SplitSettings) -> dict[str, Any] | None:
    """The entry of this split if `dataset.json` lists it and all its shards exist."""
    for entry in _listed_splits(out):
        if _is_same_split(entry, settings) and all((out / shard["file"]).exists() for shard in entry["shards"]):
            return entry
    return None


def _start(out: Path, settings: SplitSettings, fingerprint: str, replace: str) -> None:
    """Notes what is being packed, so that a later run knows which shards it may keep, and removes stale files."""
    note, prefix = out / f".{settings.prefix}.plan", escape(settings.prefix)
    if note.exists() and note.read_text() == fingerprint and replace != "always":
        stale = list(out.glob(f".{prefix}-*.part"))  # of a run that was killed
    else:
        stale = list(out.glob(f"{prefix}-*.tar"))
        if stale and replace == "never":
            raise PackError(
                f"{out}: holds {settings.prefix} packed from other files or with other settings; "
                "give another folder, delete those shards, or set overwrite to true"
            )
        _update_description(out, settings, None)  # otherwise new shards would pass for the described ones

    for path in stale:
        path.unlink()
    with atomic_file(note) as file:
        file.write(fingerprint.encode())


def _write_shards(
    samples: Sequence[PlannedSample], out: Path, settings: SplitSettings, workers: int
) -> Iterator[dict[str, Any]]:
    parts = [samples[start : start + settings.per_shard] for start in range(0, len(samples), settings.per_shard)]
    paths = [out / f"{settings.prefix}-{number:06d}.tar" for number in range(len(parts))]
    write = partial(write_shard, leave_out=settings.leave_out)
    label = f"packing {settings.prefix}"

    if workers == 1:
        yield from track(map(write, paths, parts), label, len(paths), disable=len(paths) == 1)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from track(pool.map(write, paths, parts), label, len(paths))


def write_shard(path: Path, samples: Sequence[PlannedSample], leave_out: bool) -> dict[str, Any]:
    """Writes one shard, unless it exists, and returns its entry of `dataset.json`.

    Raises:
        PackError: an image cannot be read, or the shard cannot be written; nothing is left under `path` then.
    """
    if not path.exists():
        encoded = (members for sample in samples for members in _tar_members(sample, leave_out))
        with atomic_file(path) as file, TarWriter(file, "", "", encoder=False, mtime=0, format="PAX_FORMAT") as tar:
            for members in encoded:
                tar.write(members)

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    count = len(read_index(path).entries)
    return {"file": path.name, "samples": count, "bytes": path.stat().st_size, "sha256": digest}


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when everything is written, and is removed when something fails.

    Raises:
        PackError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise PackError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _tar_members(sample: PlannedSample, leave_out: bool) -> Iterator[dict[str, Any]]:
    """The members of one sample for a tar writer; nothing if it is unreadable and may be left out."""
    try:
        suffix, content = encode(sample.hr)
        members = {"__key__": sample.key, f"hr.{suffix}": content}
        if sample.lr is not None:
            suffix, content = encode(sample.lr)
            members[f"lr.{suffix}"] = content
    except ImageError as error:
        if not leave_out:
            raise PackError(f"{error}; repair it, take it out, or set leave_out to true") from error
        _log.warning("%s; left out", error)
        return

    note = {"source": printable(sample.hr.path.name), "box": sample.hr.box}
    yield {**members, "json": json.dumps(note).encode()}


def _split_entry(settings: SplitSettings, fingerprint: str, shards: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": settings.name,
        "split": settings.split,
        "licence": settings.licence,
        "samples": sum(shard["samples"] for shard in shards),
        "fingerprint": fingerprint,
        "shards": shards,
    }


def _update_description(out: Path, settings: SplitSettings, entry: dict[str, Any] | None) -> None:
    """Replaces the entry of this split in `dataset.json`, beside the other splits; None removes it."""
    with FileLock(out / ".dataset.lock"):
        listed = _listed_splits(out)
        splits = [split for split in listed if not _is_same_split(split, settings)] + ([entry] if entry else [])
        if splits == listed:
            return

        splits.sort(key=lambda split: (split["name"], split["split"]))
        with atomic_file(out / "dataset.json") as file:
            file.write(json.dumps({"format": 1, "splits": splits}, indent=1).encode())
