"""Which photographs of a folder are set aside for validation: the same ones each time, all parts of one together."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePath

from datamodules.stream.sources import DataError

_SHARE = re.compile(r"(\d+(?:\.\d+)?)%|(\d+)")
_SUB_IMAGE = re.compile(r"_s\d{3,}$")  # what packers add to the names of sub-images


def is_share(value: str | int) -> bool:
    """Whether a value is a share of photographs, such as "10%", or their number; otherwise it is a folder."""
    return _SHARE.fullmatch(str(value)) is not None


def held_out(names: Sequence[PurePath], share: str | int) -> list[bool]:
    """For each file whether its photograph is set aside.

    Photographs are taken in the order of a hash of their names, so that the choice depends neither on the order of the
    files nor on a seed. Files that are sub-images of one photograph (`0801_s001`, `0801_s002`) stay together.

    Args:
        names: Of the files, below their folder.
        share: "10%" of the photographs, at least one, or their number.

    Raises:
        DataError: the share is neither, or would leave no photograph on one side.
    """
    found = _SHARE.fullmatch(str(share))
    if found is None:
        raise DataError(f"val: {share!r} is neither a share such as 10% nor a number of photographs such as 8")

    photographs = [photograph(name) for name in names]
    ordered = sorted(set(photographs), key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())
    number = int(found[2]) if found[2] else max(1, round(len(ordered) * float(found[1]) / 100))
    if not 0 < number < len(ordered):
        raise DataError(
            f"val: {share} of {len(ordered)} photograph(s) would be {number} for validation and "
            f"{max(len(ordered) - number, 0)} for training; give another share, or leave it out to train without "
            "validation"
        )
    chosen = set(ordered[:number])
    return [name in chosen for name in photographs]


def photograph(name: PurePath) -> str:
    """What the files of one photograph have in common: the path without suffix and without a sub-image's number."""
    return _SUB_IMAGE.sub("", name.with_suffix("").as_posix())
