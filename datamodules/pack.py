"""Packs a folder of images, or of HR/LR pairs, into shards: `python -m datamodules.pack FOLDER OUT [--name N ...]`."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jsonargparse import auto_cli

from datamodules.images import ImageError, find_images
from datamodules.packing import PackError, Packing, pack
from datamodules.pieces import Piece, View, image_size, tiles
from datamodules.sources import unique_stems

_ROLE = re.compile(r"(_HR|_LR\d?|_?x\d)$", re.IGNORECASE)  # 0801x4, Canon_001_LR4, Canon_10_x1
_PAIRS = (("hr", "lr"), ("HR", "LR"), ("gt", "lq"), ("GT", "LQ"), ("test_HR", "test_LR"))  # folders side by side
_SHOWN = 10


def pairs(hr: Sequence[Path], lr: Sequence[Path]) -> list[tuple[Path, Path]]:
    """HR files with their LR partners: the same name, or the same but for endings such as x4, _LR4, _HR.

    Raises:
        PackError: a file without a partner, or with two.
    """
    alike = sorted(path.stem for path in hr) == sorted(path.stem for path in lr)
    partners, wanted = _by_name(lr, alike), _by_name(hr, alike)
    lonely = [str(path) for stem, path in {**partners, **wanted}.items() if stem not in partners or stem not in wanted]
    if lonely:
        raise PackError(f"without a partner: {_listing(lonely)}")
    return [(path, partners[stem]) for stem, path in wanted.items()]


def _by_name(files: Sequence[Path], alike: bool) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in files:
        name = path.stem if alike else _ROLE.sub("", path.stem)
        if name in named:
            raise PackError(f"{named[name]} and {path} have one name: rename one, or pack their folders apart")
        named[name] = path
    return named


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def plan(
    hr: Sequence[Path], root: Path, lr: Sequence[Path] | None = None, crop: int | None = None, step: int | None = None,
    leave_out: bool = False,
) -> list[Piece]:  # fmt: skip
    """What to pack: whole images, or squares of `crop` every `step`, with the same part of the LR partners.

    Raises:
        PackError: images that are no images or smaller than `crop`, or pairs of which LR is not a whole fraction of HR;
            all of them are named. With `leave_out` they are only reported.
    """
    keys = [stem.replace(".", "_") for stem in unique_stems(hr, root)]
    partners = dict(pairs(hr, lr)) if lr is not None else {}
    pieces: list[Piece] = []
    problems: list[str] = []
    for key, path in zip(keys, hr, strict=True):
        try:
            pieces += _pieces(key, path, partners.get(path), crop, step)
        except (PackError, ImageError) as error:
            problems.append(str(error))
    if problems and not leave_out:
        raise PackError(
            f"{len(problems)} of {len(hr)} cannot be packed (--leave_out true goes on without): {_listing(problems)}"
        )
    for problem in problems:
        logging.getLogger(__name__).warning("%s; left out", problem)
    return pieces


def _pieces(key: str, hr: Path, lr: Path | None, crop: int | None, step: int | None) -> Iterator[Piece]:
    width, height = image_size(hr)
    scale = _scale(hr, (width, height), lr)
    if crop is None:
        yield Piece(key, View(hr), View(lr) if lr else None)
        return
    step = step or crop
    if min(width, height) < crop:
        raise PackError(f"{hr}: {width}x{height} is below the crop of {crop}x{crop}")
    if crop % scale or step % scale:
        raise PackError(f"crop {crop} and step {step} must be multiples of the scale {scale}")
    for number, box in enumerate(tiles(width, height, crop, step, scale), 1):
        left, top, right, bottom = (side // scale for side in box)
        small = View(lr, (left, top, right, bottom)) if lr else None
        yield Piece(f"{key}_s{number:03d}", View(hr, box), small)


def _scale(hr: Path, size: tuple[int, int], lr: Path | None) -> int:
    if lr is None:
        return 1
    small = image_size(lr)
    scale = size[0] // small[0]
    if scale < 1 or small != (size[0] // scale, size[1] // scale):
        raise PackError(f"{hr} is {size[0]}x{size[1]} and {lr} is {small[0]}x{small[1]}: no pair at a whole scale")
    return scale


def pack_folder(
    folder: str,
    out: str,
    name: str | None = None,
    split: str = "train",
    lr: str | None = None,
    crop: int | None = None,
    step: int | None = None,
    per_shard: int = 256,
    licence: str = "",
    leave_out: bool = False,
    overwrite: bool = False,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Packs a folder of images, or of HR/LR pairs, into WebDataset shards.

    Args:
        folder: images; or pairs, in two folders in it called hr and lr, or gt and lq.
        out: folder for the shards and dataset.json; a killed run goes on there.
        name: of the set; the folder's name by default.
        split: of the set: train, val, test, ...
        lr: folder of the LR partners, wherever it lies; files may be called as the HR ones, or end in x4, _LR4, ...
        crop: side of the square sub-images; whole images by default. DIV2K is usually cut with 480.
        step: between sub-images; `crop` by default. DIV2K is usually cut with 240.
        per_shard: samples in a shard.
        licence: noted in dataset.json.
        leave_out: go on without images that are unreadable or too small, instead of stopping.
        overwrite: replace shards of this set that were packed with other settings.
        workers: processes.
    """
    root, small = _roots(Path(folder), lr)
    pieces = plan(find_images(root), root, find_images(small) if small else None, crop, step, leave_out)
    packing = Packing(name or Path(folder).resolve().name, split, per_shard, licence, leave_out)
    pack(pieces, Path(out), packing, workers=workers, overwrite=overwrite)
    print(f"{len(pieces)} samples of {packing.prefix} are in {out}")


def _roots(folder: Path, lr: str | None) -> tuple[Path, Path | None]:
    """Where the HR images are, and their LR partners if there are any."""
    if lr is not None:
        return folder, Path(lr)
    found = [
        (folder / high, folder / low) for high, low in _PAIRS if (folder / high).is_dir() and (folder / low).is_dir()
    ]
    return found[0] if found else (folder, None)


def command(function: Callable[..., None]) -> None:
    """Runs a function of this package as a command line; errors in what the user gave are one message, exit code 1."""
    logging.basicConfig(format="%(message)s")
    try:
        auto_cli(function, as_positional=True, prog=f"python -m datamodules.{Path(sys.argv[0]).stem}")
    except (PackError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    command(pack_folder)
