"""Two folders of pictures as pairs: matched by name, read whole, everything that is wrong with them said at once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.images import ImageError, decode, find_images, image_size

# What programs add to a name: baby_x4, babyx4, baby_SR, baby_HR, baby_LR4, baby_out, baby_RealESRGAN_x4plus
_ROLE = re.compile(r"([-_.](sr|hr|lr\d?|gt|lq|out|output|bicubic|realesrgan|x\d+(plus)?)|x\d+(plus)?)$", re.IGNORECASE)
_SHOWN = 30


class FoldersError(ValueError):
    """Folders that cannot be scored; the message lists every file in the way."""


@dataclass(frozen=True)
class Pair:
    """The files of one image.

    Attributes:
        key: Its name in results.
        sr: The result.
        hr: The target; None where there are none.
        lr: What the result was made of, where it is given.
    """

    key: str
    sr: Path
    hr: Path | None
    lr: Path | None


def pairs_of(sr: Path, hr: Path | None, lr: Path | None, name: str) -> list[Pair]:
    """The images of up to three folders (or single files), matched by their names without what programs add to them.

    Args:
        sr: Results.
        hr: Targets.
        lr: Low-resolution images.
        name: Of the set; keys are `name/<stem>` of the target, or of the result where there are no targets.

    Raises:
        FoldersError: a file has no partner, or two have one name; all of them are listed.
        FileNotFoundError: a folder does not exist or holds no image.
    """
    given = {kind: find_images(path) for kind, path in (("SR", sr), ("HR", hr), ("LR", lr)) if path is not None}
    exact = len({tuple(sorted(path.stem for path in files)) for files in given.values()}) == 1
    named = {kind: _by_name(files, exact) for kind, files in given.items()}
    every = {stem for files in named.values() for stem in files}

    lacking = [
        f"{stem}: no {kind} ({', '.join(str(files[stem]) for files in named.values() if stem in files)})"
        for stem in sorted(every)
        for kind in named
        if stem not in named[kind]
    ]
    if lacking:
        raise FoldersError(
            f"{len(lacking)} image(s) have no partner of the same name (endings such as x4, _SR, _HR, _out do not "
            f"count):{listed(lacking)}"
        )

    # Keys name the targets, whose names are the set's own.
    key_of = named.get("HR", named["SR"])
    return [
        Pair(f"{name}/{key_of[stem].stem}", path, named.get("HR", {}).get(stem), named.get("LR", {}).get(stem))
        for stem, path in sorted(named["SR"].items(), key=lambda item: key_of[item[0]].stem)
    ]


def _by_name(files: Sequence[Path], exact: bool) -> dict[str, Path]:
    named: dict[str, Path] = {}
    twice = []
    for path in files:
        stem = path.stem if exact else bare_name(path.stem)
        if stem in named:
            twice.append(f"{named[stem]} and {path}")
        named[stem] = path
    if twice:
        raise FoldersError(f"files of one name, which cannot be told apart; score their folders apart:{listed(twice)}")
    return named


def bare_name(stem: str) -> str:
    """A stem without what programs add to it, in small letters."""
    shorter = _ROLE.sub("", stem)
    return bare_name(shorter) if shorter and shorter != stem else stem.lower()


def check_sizes(pairs: Sequence[Pair], crop_hr: bool) -> None:
    """Compares all sizes, from the files' headers.

    Args:
        pairs: The images.
        crop_hr: Whether targets may be larger at the right and the bottom.

    Raises:
        FoldersError: a file cannot be read, or sizes differ; all of them are listed.
    """
    wrong = []
    for pair in pairs:
        if pair.hr is None:
            continue
        try:
            (width, height), (hr_width, hr_height) = image_size(pair.sr), image_size(pair.hr)
        except ImageError as error:
            wrong.append(str(error))
            continue
        fits = width <= hr_width and height <= hr_height if crop_hr else (width, height) == (hr_width, hr_height)
        if not fits:
            wrong.append(f"{pair.sr} has {width}x{height} pixels, {pair.hr} {hr_width}x{hr_height}")

    if wrong:
        way_out = "" if crop_hr else "; where targets are only longer at the right and the bottom: --crop-hr"
        raise FoldersError(f"{len(wrong)} image(s) cannot be compared{way_out}:{listed(wrong)}")


def read(path: Path) -> Tensor:
    """uint8 `[1,3,H,W]`.

    Raises:
        FoldersError: the file is damaged.
    """
    try:
        return torch.from_numpy(np.array(decode(path, str(path)))).permute(2, 0, 1)[None]
    except ImageError as error:
        raise FoldersError(str(error)) from error


def read_pair(pair: Pair) -> Mapping[str, Tensor]:
    """uint8 `[1,3,H,W]` of `sr`, `hr` and `lr`, as far as there are files; a larger target is cropped to the result."""
    found = {"sr": read(pair.sr)}
    if pair.hr is not None:
        found["hr"] = read(pair.hr)[..., : found["sr"].shape[-2], : found["sr"].shape[-1]]
    if pair.lr is not None:
        found["lr"] = read(pair.lr)
    return found


def listed(lines: Sequence[str]) -> str:
    """The lines one below the other; of very many the first."""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:_SHOWN], *more])
