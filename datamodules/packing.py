"""Writes WebDataset shards: `{name}-{split}-{000000..N}.tar` and, beside them, a `dataset.json`.

A sample is `key.hr.png`, for pairs `key.lr.png`, and `key.json` (source file, box). A shard appears under its name only
when it is whole, so a killed run goes on with the missing ones; the same files and settings give the same bytes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from rich.progress import track
from webdataset.writer import TarWriter

from datamodules.images import ImageError
from datamodules.pieces import Piece, View, encoded
from datamodules.shards import read_contents

_log = logging.getLogger(__name__)


class PackError(ValueError):
    """The set cannot be packed; the message names the file or the setting and the way out."""


@dataclass(frozen=True)
class Packing:
    """What a packed split is called and how it is cut into shards.

    Attributes:
        name: of the set; the first part of every key.
        split: "train", "val", "test", ...
        per_shard: samples in a shard. There should be more shards than loading processes where they are remote.
        licence: noted in `dataset.json`.
        leave_out: name unreadable images and go on without them, instead of stopping.
    """

    name: str
    split: str
    per_shard: int = 256
    licence: str = ""
    leave_out: bool = False

    @property
    def prefix(self) -> str:
        """What the shards' names begin with."""
        return f"{self.name}-{self.split}"


def pack(pieces: Sequence[Piece], out: Path, packing: Packing, *, workers: int = 1, overwrite: bool = False) -> None:
    """Writes the shards of one split and enters them into `dataset.json`; finished shards are kept.

    Args:
        pieces: what to pack, in order.
        out: folder for the shards.
        packing: names and sizes.
        workers: processes.
        overwrite: replace shards of this split that were packed from other files or with other settings.

    Raises:
        PackError: no piece, two of one key, an unreadable image, no room on the disk, or `out` holds this split packed
            from other files or with other settings.
    """
    _check_keys(pieces)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / f".{packing.prefix}.lock"):
        plan = _fingerprint(pieces, packing)
        if _finished(out, packing) == plan:
            return
        _claim(out, packing, plan, overwrite)
        _enter(out, packing, plan, list(_write_all(pieces, out, packing, workers)))


def _check_keys(pieces: Sequence[Piece]) -> None:
    if not pieces:
        raise PackError("nothing to pack")
    seen: dict[str, Path] = {}
    for piece in pieces:
        if piece.key in seen:
            raise PackError(f"{seen[piece.key]} and {piece.hr.path} have the same key {piece.key!r}: rename one")
        seen[piece.key] = piece.hr.path


def _fingerprint(pieces: Sequence[Piece], packing: Packing) -> str:
    size = lru_cache(maxsize=2)(os.path.getsize)

    def told(view: View) -> list[Any]:
        return [size(view.path), view.box, view.side, view.resample]

    listed = [[piece.key, told(piece.hr), piece.lr and told(piece.lr)] for piece in pieces]
    return hashlib.sha256(json.dumps([asdict(packing), listed]).encode()).hexdigest()


def _description(out: Path) -> list[dict[str, Any]]:
    path = out / "dataset.json"
    return list(json.loads(path.read_text())["splits"]) if path.exists() else []


def _is(split: dict[str, Any], packing: Packing) -> bool:
    return bool(split["name"] == packing.name and split["split"] == packing.split)


def _finished(out: Path, packing: Packing) -> str | None:
    """The fingerprint of this split if `dataset.json` has it and its shards are there."""
    for split in _description(out):
        if _is(split, packing) and all((out / shard["file"]).exists() for shard in split["shards"]):
            return str(split["fingerprint"])
    return None


def _claim(out: Path, packing: Packing, fingerprint: str, overwrite: bool) -> None:
    """Notes what is being packed, so that a later run knows which shards it may keep."""
    note = out / f".{packing.prefix}.plan"
    if note.exists() and note.read_text() == fingerprint:
        stale = list(out.glob(f".{packing.prefix}-*.part"))  # of a run that was killed
    else:
        stale = list(out.glob(f"{packing.prefix}-*.tar"))
        if stale and not overwrite:
            raise PackError(
                f"{out}: holds {packing.prefix} packed from other files or with other settings; "
                "give another folder, delete those shards, or pack with --overwrite true"
            )
        _list(out, packing, None)  # nobody shall take the new shards for those that were described
    for path in stale:
        path.unlink()
    with whole_file(note) as file:
        file.write(fingerprint.encode())


def _write_all(pieces: Sequence[Piece], out: Path, packing: Packing, workers: int) -> Iterator[dict[str, Any]]:
    parts = [pieces[start : start + packing.per_shard] for start in range(0, len(pieces), packing.per_shard)]
    paths = [out / f"{packing.prefix}-{number:06d}.tar" for number in range(len(parts))]
    write = partial(write_shard, leave_out=packing.leave_out)
    label = f"packing {packing.prefix}"
    if workers == 1:
        yield from track(map(write, paths, parts), label, len(paths), disable=len(paths) == 1)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from track(pool.map(write, paths, parts), label, len(paths))


def write_shard(path: Path, pieces: Sequence[Piece], leave_out: bool) -> dict[str, Any]:
    """Writes one shard, unless it is there, and returns its entry of `dataset.json`.

    Raises:
        PackError: an image cannot be read, or the shard cannot be written; nothing is left under `path` then.
    """
    if not path.exists():
        samples = (sample for piece in pieces for sample in _members(piece, leave_out))
        with whole_file(path) as file, TarWriter(file, "", "", encoder=False, mtime=0, format="PAX_FORMAT") as tar:
            for sample in samples:
                tar.write(sample)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    held = len(read_contents(path).entries)
    return {"file": path.name, "samples": held, "bytes": path.stat().st_size, "sha256": digest}


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when everything is written, and is gone when something fails.

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


def _members(piece: Piece, leave_out: bool) -> Iterator[dict[str, Any]]:
    """The members of one sample for a tar writer; nothing if it is unreadable and may be left out."""
    try:
        suffix, content = encoded(piece.hr)
        sample = {"__key__": piece.key, f"hr.{suffix}": content}
        if piece.lr is not None:
            suffix, content = encoded(piece.lr)
            sample[f"lr.{suffix}"] = content
    except ImageError as error:
        if not leave_out:
            raise PackError(f"{error}; repair it, take it out, or pack with --leave_out true") from error
        _log.warning("%s; left out", error)
        return
    note = {"source": piece.hr.path.name, "box": piece.hr.box}
    yield {**sample, "json": json.dumps(note).encode()}


def _enter(out: Path, packing: Packing, fingerprint: str, shards: list[dict[str, Any]]) -> None:
    """Writes the split into `dataset.json`, beside the other splits."""
    entry = {
        "name": packing.name,
        "split": packing.split,
        "licence": packing.licence,
        "samples": sum(shard["samples"] for shard in shards),
        "fingerprint": fingerprint,
        "shards": shards,
    }
    _list(out, packing, entry)


def _list(out: Path, packing: Packing, entry: dict[str, Any] | None) -> None:
    """Puts `entry` in the place of the split in `dataset.json`; None takes the split out of it."""
    with FileLock(out / ".dataset.lock"):
        listed = _description(out)
        splits = [split for split in listed if not _is(split, packing)] + ([entry] if entry else [])
        if splits == listed:
            return
        splits.sort(key=lambda split: (split["name"], split["split"]))
        with whole_file(out / "dataset.json") as file:
            file.write(json.dumps({"format": 1, "splits": splits}, indent=1).encode())
