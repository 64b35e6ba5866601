"""Plans what is packed of a list of image files: whole images or sub-images, alone or with their LR partners."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datamodules.images import ImageError, image_size
from datamodules.prepare.samples import PlannedImage, PlannedSample, tiles
from datamodules.prepare.shard_writer import PackError
from datamodules.stream.sources import unique_keys

_log = logging.getLogger(__name__)
_SHOWN = 10  # problems named in a message


def plan(
    hr: Sequence[Path], root: Path, partners: Mapping[Path, Path] | None = None, crop: int | None = None,
    step: int | None = None, leave_out: bool = False,
) -> list[PlannedSample]:  # fmt: skip
    """What to pack: whole images, or squares of `crop` every `step`, with the same part of the LR partners.

    Args:
        hr: files of the HR images.
        root: folder that keys are relative to.
        partners: the LR file of each HR file, see `pair_files`; None packs HR images alone.
        crop: side of the HR sub-images in pixels; None packs whole images.
        step: between HR sub-images in pixels; `crop` by default.
        leave_out: name unusable images in a warning and continue without them.

    Raises:
        PackError: without `leave_out`: files that are not images or are smaller than `crop`, or pairs of which HR is
            not a whole multiple of LR; all of them are named.
    """
    keys = unique_keys([path.relative_to(root) for path in hr], dot="_")  # a shard separates key and role by a dot
    partners = partners or {}
    samples: list[PlannedSample] = []
    problems: list[str] = []
    for key, path in zip(keys, hr, strict=True):
        try:
            samples += _samples_of(key, path, partners.get(path), crop, step)
        except (PackError, ImageError) as error:
            problems.append(str(error))

    if problems and not leave_out:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise PackError(
            f"{len(problems)} of {len(hr)} cannot be packed (set leave_out to true to continue without them): "
            f"{', '.join(problems[:_SHOWN])}{more}"
        )
    for problem in problems:
        _log.warning("%s; left out", problem)
    return samples


def _samples_of(key: str, hr: Path, lr: Path | None, crop: int | None, step: int | None) -> Iterator[PlannedSample]:
    width, height = image_size(hr)
    scale = _scale_of_pair(hr, (width, height), lr)
    if crop is None:
        yield PlannedSample(key, PlannedImage(hr), PlannedImage(lr) if lr else None)
        return

    step = step or crop
    if min(width, height) < crop:
        raise PackError(f"{hr}: {width}x{height} is below the crop of {crop}x{crop}")
    if crop % scale or step % scale:
        raise PackError(f"crop {crop} and step {step} must be multiples of the scale {scale}")

    for number, box in enumerate(tiles(width, height, crop, step, scale), 1):
        left, top, right, bottom = (side // scale for side in box)
        lr_part = PlannedImage(lr, (left, top, right, bottom)) if lr else None
        yield PlannedSample(f"{key}_s{number:03d}", PlannedImage(hr, box), lr_part)


def _scale_of_pair(hr: Path, hr_size: tuple[int, int], lr: Path | None) -> int:
    if lr is None:
        return 1
    lr_size = image_size(lr)
    scale = hr_size[0] // lr_size[0]
    if scale < 1 or lr_size != (hr_size[0] // scale, hr_size[1] // scale):
        raise PackError(
            f"{hr} is {hr_size[0]}x{hr_size[1]} and {lr} is {lr_size[0]}x{lr_size[1]}: no pair at a whole scale"
        )
    return scale
