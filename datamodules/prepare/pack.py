"""`lightning pack`: packs image files into WebDataset shards."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import auto_cli

from datamodules import celeba, div2k, ffhq, realsr
from datamodules.images import find_images
from datamodules.prepare.plan import plan
from datamodules.prepare.shard_writer import SplitSettings, summary, write_split
from datamodules.stream.sources import printable

# `lightning pack NAME ...` for the published sets, whose folders, crops and licences are known
PUBLISHED: dict[str, Callable[..., None]] = {
    "div2k": div2k.prepare,
    "ffhq": ffhq.prepare,
    "celeba": celeba.prepare,
    "realsr": realsr.prepare,
}
_PAIR_FOLDERS = (("hr", "lr"), ("HR", "LR"), ("gt", "lq"), ("GT", "LQ"), ("test_HR", "test_LR"))


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
        folder: images; or pairs, in two sub-folders called hr and lr, or gt and lq.
        out: folder for the shards and dataset.json; a killed run continues there.
        name: of the set; the folder's name by default.
        split: of the set: train, val, test, ...
        lr: folder of the LR partners, wherever it is; its files have the names of the HR files, or end in x4, _LR4, ...
        crop: side of the square sub-images; whole images by default. DIV2K is usually cut with 480.
        step: between sub-images; `crop` by default. DIV2K is usually cut with 240.
        per_shard: samples in a shard.
        licence: noted in dataset.json.
        leave_out: continue without images that are unreadable or too small, instead of stopping.
        overwrite: write the shards of this set anew, whatever is there.
        workers: processes.
    """
    images, target = Path(folder).expanduser(), Path(out).expanduser()
    hr_root, lr_root = _hr_and_lr(images, lr)
    hr_files, lr_files = find_images(hr_root), find_images(lr_root) if lr_root else None
    samples = plan(hr_files, hr_root, lr_files, crop, step, leave_out)

    name = printable(images.resolve().name) if name is None else name
    settings = SplitSettings(name, split, per_shard, licence, leave_out)
    packed = write_split(samples, target, settings, workers=workers, replace="always" if overwrite else "never")
    print(summary(settings, target, len(hr_files), samples, packed))


def _hr_and_lr(folder: Path, lr: str | None) -> tuple[Path, Path | None]:
    """The folder of the HR images, and that of their LR partners if there are any."""
    if lr is not None:
        return folder, Path(lr).expanduser()
    for hr_name, lr_name in _PAIR_FOLDERS:
        if (folder / hr_name).is_dir() and (folder / lr_name).is_dir():
            return folder / hr_name, folder / lr_name
    return folder, None


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs a published set if the first argument is its name, else a folder; a wrong argument is one message.

    Args:
        arguments: what follows `lightning pack`; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    prepare, program = pack_folder, "lightning pack"
    epilog = (
        f"Published sets: lightning pack {{{','.join(PUBLISHED)}}} --help. A folder of such a name is given as ./NAME."
    )
    if words and words[0] in PUBLISHED:
        prepare, program, epilog = PUBLISHED[words[0]], f"lightning pack {words.pop(0)}", ""

    logging.basicConfig(format="%(message)s")
    try:
        auto_cli(prepare, args=words, as_positional=True, prog=program, epilog=epilog)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
