"""Writes WebDataset shards: `{name}-{split}-{000000..N}.tar` and, beside them, a `dataset.json`.

A sample is `key.hr.png`, for pairs `key.lr.png`, and `key.json` (source file, size, box). A shard appears under its
name only when it is whole, so a killed run goes on with the missing ones; the same files and settings give the same
bytes.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from PIL import Image
from rich.progress import track
from webdataset.writer import TarWriter

from datamodules.images import ImageError, Pixels, decode, transparent

_KEPT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}  # formats whose bytes go into the shard as they are
_ORIENTATION = 0x0112  # EXIF: values from 5 on swap width and height
Box = tuple[int, int, int, int]  # left, top, right, bottom


class PackError(Exception):
    """The set cannot be packed; the message names the file or the setting and the way out."""


@dataclass(frozen=True)
class Piece:
    """One sample to pack: a whole image, or the part of it in `box`; `lr` holds it `scale` times smaller."""

    key: str
    hr: Path
    lr: Path | None = None
    box: Box | None = None
    scale: int = 1


@dataclass(frozen=True)
class Packing:
    """What a packed split is called and how it is cut into shards."""

    name: str
    split: str
    per_shard: int = 256
    licence: str = ""


def tiles(width: int, height: int, crop: int, step: int) -> Iterator[Box]:
    """Overlapping squares that cover an image, row by row; the last of a row or column ends at the border.

    Raises:
        PackError: the image is smaller than `crop`.
    """
    if min(width, height) < crop:
        raise PackError(f"{width}x{height} is below the crop of {crop}x{crop}")
    for top in _starts(height, crop, step):
        for left in _starts(width, crop, step):
            yield left, top, left + crop, top + crop


def _starts(length: int, crop: int, step: int) -> list[int]:
    starts = list(range(0, length - crop + 1, step))
    return starts if starts[-1] == length - crop else [*starts, length - crop]


def pack(pieces: Sequence[Piece], out: Path, packing: Packing, *, workers: int = 1, overwrite: bool = False) -> None:
    """Writes the shards of one split and enters them into `dataset.json`; finished shards are kept.

    Raises:
        PackError: no piece, two of one key, an unreadable image, no room on the disk, or `out` holds this split packed
            from other files or with other settings.
    """
    _check_keys(pieces)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / f".{packing.name}-{packing.split}.lock"):
        plan = _fingerprint(pieces, packing)
        if _finished(out, packing) == plan and not overwrite:
            return
        _claim(out, packing, plan, overwrite)
        _enter(out, packing, plan, list(_write_all(pieces, out, packing, workers)), paired=pieces[0].lr is not None)


def _check_keys(pieces: Sequence[Piece]) -> None:
    if not pieces:
        raise PackError("nothing to pack")
    seen: dict[str, Path] = {}
    for piece in pieces:
        if piece.key in seen:
            raise PackError(f"{seen[piece.key]} and {piece.hr} have the same key {piece.key!r}: rename one")
        seen[piece.key] = piece.hr


def _fingerprint(pieces: Sequence[Piece], packing: Packing) -> str:
    size = lru_cache(maxsize=2)(os.path.getsize)
    told = [(piece.key, piece.box, size(piece.hr), piece.lr and size(piece.lr)) for piece in pieces]
    return hashlib.sha256(json.dumps([asdict(packing), told]).encode()).hexdigest()


def _description(out: Path) -> dict[str, Any]:
    path = out / "dataset.json"
    described: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"format": 1, "splits": []}
    return described


def _is(split: dict[str, Any], packing: Packing) -> bool:
    return bool(split["name"] == packing.name and split["split"] == packing.split)


def _finished(out: Path, packing: Packing) -> str | None:
    """The fingerprint of this split if `dataset.json` has it and its shards are there."""
    for split in _description(out)["splits"]:
        if _is(split, packing) and all((out / shard["file"]).exists() for shard in split["shards"]):
            return str(split["fingerprint"])
    return None


def _claim(out: Path, packing: Packing, fingerprint: str, overwrite: bool) -> None:
    """Notes what is being packed, so that a later run knows which shards it may keep."""
    note = out / f".{packing.name}-{packing.split}.plan"
    shards = list(out.glob(f"{packing.name}-{packing.split}-*.tar"))
    if shards and not overwrite and (not note.exists() or note.read_text() != fingerprint):
        raise PackError(
            f"{out} holds {packing.name}-{packing.split} packed from other files or with other settings: "
            "give another folder, or --overwrite"
        )
    for shard in shards if overwrite else ():
        shard.unlink()
    with _whole(note) as file:
        file.write(fingerprint.encode())


def _write_all(pieces: Sequence[Piece], out: Path, packing: Packing, workers: int) -> Iterator[dict[str, Any]]:
    parts = [pieces[start : start + packing.per_shard] for start in range(0, len(pieces), packing.per_shard)]
    paths = [out / f"{packing.name}-{packing.split}-{number:06d}.tar" for number in range(len(parts))]
    if workers == 1:
        yield from _tracked(map(write_shard, paths, parts), packing, len(paths))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from _tracked(pool.map(write_shard, paths, parts), packing, len(paths))


def _tracked(shards: Iterator[dict[str, Any]], packing: Packing, total: int) -> Iterator[dict[str, Any]]:
    yield from track(shards, f"packing {packing.name}-{packing.split}", total, disable=total == 1)


def write_shard(path: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Writes one shard, unless it is there, and returns its entry of `dataset.json`.

    Raises:
        PackError: an image cannot be read, or the shard cannot be written; nothing is left under `path` then.
    """
    if not path.exists():
        with _whole(path) as file, TarWriter(file, "", "", encoder=False, mtime=0, format="PAX_FORMAT") as tar:
            for piece in pieces:
                tar.write(members(piece))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "samples": len(pieces), "bytes": path.stat().st_size, "sha256": digest}


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
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


def members(piece: Piece) -> dict[str, Any]:
    """The members of one sample, ready for a tar writer.

    Raises:
        PackError: an image cannot be read, or the sizes of a pair disagree.
    """
    try:
        (suffix, hr), size = _encoded(piece.hr, piece.box), _size(piece.hr)
        sample = {"__key__": piece.key, f"hr.{suffix}": hr}
        if piece.lr is not None:
            _check_pair(piece, size, _size(piece.lr))
            suffix, lr = _encoded(piece.lr, _shrunk(piece.box, piece.scale))
            sample[f"lr.{suffix}"] = lr
    except (ImageError, OSError) as error:
        raise PackError(f"{piece.hr}: {error}") from error
    note = {"source": piece.hr.name, "size": size, "box": piece.box}
    return {**sample, "json": json.dumps(note).encode()}


def _check_pair(piece: Piece, hr: tuple[int, int], lr: tuple[int, int]) -> None:
    if lr != (hr[0] // piece.scale, hr[1] // piece.scale):
        raise PackError(
            f"{piece.hr} is {hr[0]}x{hr[1]} and {piece.lr} is {lr[0]}x{lr[1]}: not a pair at scale {piece.scale}"
        )


def _encoded(path: Path, box: Box | None) -> tuple[str, bytes]:
    """Suffix and bytes: those of the file if a whole opaque image in a usual format, else a PNG of the part."""
    with Image.open(path) as image:
        if box is None and image.format in _KEPT and not transparent(image):
            return _KEPT[image.format], path.read_bytes()
    pixels = _decode(path)
    left, top, right, bottom = box or (0, 0, pixels.shape[1], pixels.shape[0])
    encoded = io.BytesIO()
    Image.fromarray(pixels[top:bottom, left:right]).save(encoded, "PNG", compress_level=3)
    return "png", encoded.getvalue()


def _shrunk(box: Box | None, scale: int) -> Box | None:
    return box and (box[0] // scale, box[1] // scale, box[2] // scale, box[3] // scale)


def _size(path: Path) -> tuple[int, int]:
    """Width and height as `decode` will deliver them."""
    with Image.open(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return (image.height, image.width) if turned else (image.width, image.height)


@lru_cache(maxsize=2)
def _decode(path: Path) -> Pixels:
    return decode(path, str(path))


def _enter(out: Path, packing: Packing, fingerprint: str, shards: list[dict[str, Any]], paired: bool) -> None:
    """Writes the split into `dataset.json`, beside the other splits."""
    entry = {
        "name": packing.name,
        "split": packing.split,
        "licence": packing.licence,
        "paired": paired,
        "samples": sum(shard["samples"] for shard in shards),
        "fingerprint": fingerprint,
        "shards": shards,
    }
    with FileLock(out / ".dataset.lock"):
        splits = [split for split in _description(out)["splits"] if not _is(split, packing)] + [entry]
        splits.sort(key=lambda split: (split["name"], split["split"]))
        with _whole(out / "dataset.json") as file:
            file.write(json.dumps({"format": 1, "splits": splits}, indent=1).encode())
