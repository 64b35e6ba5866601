"""Faces at fixed sizes: FFHQ to train on, CelebA-HQ to test on."""

import logging
import os
from pathlib import Path
from typing import Any, Literal

from datamodules.images import ImageError, find_images, image_size
from datamodules.prepare.samples import PlannedImage, PlannedSample
from datamodules.prepare.shard_writer import PackError, SplitSettings, summary, write_split
from datamodules.shard_folder import ShardFolder
from datamodules.stream.sources import unique_keys

_log = logging.getLogger(__name__)
_LICENCE = {
    "ffhq": "FFHQ: CC BY-NC-SA 4.0, https://github.com/NVlabs/ffhq-dataset",
    "celebahq": "CelebA-HQ: non-commercial research and education only",
}


class Faces(ShardFolder):
    """FFHQ (Karras et al., CVPR 2019) for training and CelebA-HQ for test, as SR3 (arXiv:2104.07636) uses them.

    HR and LR are both resized from the original by Pillow's bicubic, and packed as pairs; whole faces, no crops.

    Args:
        root: folder or URL of the shards.
        size: side of the HR faces: 128, 256, 512 or 1024, or what was packed.
        scale: HR size over LR size: 8 gives 16 to 128, or 64 to 512.
        options: those of `SRDataModule`.
    """

    prepare = "lightning pack ffhq FACES {root} --name {family} --size {crop} --scale {scale}"

    def __init__(
        self,
        root: str = "data/faces",
        size: int = 128,
        scale: int = 8,
        **options: Any,
    ) -> None:
        test = f"{set_name('celebahq', size, scale)}-test"
        train = f"{set_name('ffhq', size, scale)}-train"
        super().__init__(root, train, test, test, scale=scale, crop=size, paired=True, **options)


def set_name(name: str, size: int, scale: int) -> str:
    """What faces of one size are called: "ffhq_16_128"."""
    return f"{name}_{size // scale}_{size}"


def prepare(
    folder: str,
    out: str,
    name: Literal["ffhq", "celebahq"] = "ffhq",
    size: int = 128,
    scale: int = 8,
    leave_out: bool = False,
    overwrite: bool = False,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Packs a folder of aligned square faces at one size.

    Args:
        folder: the faces, at `size` or larger, in any sub-folders: images1024x1024 or thumbnails128x128 of FFHQ, or
            those of CelebA-HQ.
        out: folder for the shards.
        name: ffhq is packed for training, celebahq for test.
        size: side of the HR faces.
        scale: HR size over LR size.
        leave_out: continue without faces that are unreadable, not square or too small, instead of stopping.
        overwrite: write the shards anew, whatever is there.
        workers: processes.
    """
    if size % scale:
        raise PackError(f"size {size} is not a multiple of scale {scale}")
    files = find_images(Path(folder).expanduser())
    usable = [path for path in files if _is_usable(path, size, leave_out)]
    keys = unique_keys([Path(path.name) for path in usable], dot="_")
    samples = [
        PlannedSample(key, PlannedImage(path, side=size), PlannedImage(path, side=size // scale))
        for key, path in zip(keys, usable, strict=True)
    ]

    split, target = "train" if name == "ffhq" else "test", Path(out).expanduser()
    settings = SplitSettings(set_name(name, size, scale), split, 1024, _LICENCE[name], leave_out)
    packed = write_split(samples, target, settings, workers=workers, replace="always" if overwrite else "never")
    print(summary(settings, target, len(files), samples, packed))


def _is_usable(path: Path, size: int, leave_out: bool) -> bool:
    """Whether a file is an aligned face; one that is not is an error, or with `leave_out` a warning.

    Raises:
        PackError: it is not, and may not be left out.
    """
    try:
        width, height = image_size(path)
        if width != height or width < size:
            raise PackError(f"{path}: is {width}x{height}; an aligned face of at least {size}x{size} is needed")
    except (ImageError, PackError) as error:
        if not leave_out:
            raise PackError(str(error)) from error
        _log.warning("%s; left out", error)
        return False
    return True
