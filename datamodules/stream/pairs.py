"""Which LR file belongs to which HR file, told by their names."""

import re
from collections.abc import Sequence
from pathlib import Path

from datamodules.stream.sources import DataError

_ROLE = re.compile(r"(_HR|_LR\d?|_?x\d)$", re.IGNORECASE)  # 0801x4, Canon_001_LR4, Canon_10_x1
_SHOWN = 10  # files named in a message


def pair_files(hr: Sequence[Path], lr: Sequence[Path]) -> list[tuple[Path, Path]]:
    """HR files with their LR partners: the same name, or the same except for endings such as x4, _LR4, _HR.

    Raises:
        DataError: a file has no partner, or has two.
    """
    same_names = sorted(path.stem for path in hr) == sorted(path.stem for path in lr)
    lr_by_name, hr_by_name = _by_name(lr, same_names), _by_name(hr, same_names)

    every = {**lr_by_name, **hr_by_name}
    unpaired = [str(path) for name, path in every.items() if name not in lr_by_name or name not in hr_by_name]
    if unpaired:
        more = f" and {len(unpaired) - _SHOWN} more" if len(unpaired) > _SHOWN else ""
        raise DataError(f"without a partner: {', '.join(unpaired[:_SHOWN])}{more}")
    return [(path, lr_by_name[name]) for name, path in hr_by_name.items()]


def _by_name(files: Sequence[Path], same_names: bool) -> dict[str, Path]:
    """Files by what pairs have in common: the whole stem if `same_names`, else the stem without its role."""
    named: dict[str, Path] = {}
    for path in files:
        name = path.stem if same_names else _ROLE.sub("", path.stem)
        if name in named:
            raise DataError(f"{named[name]} and {path} have the same name: rename one, or pack their folders apart")
        named[name] = path
    return named
