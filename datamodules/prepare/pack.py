"""`lightning pack`: packs image files into WebDataset shards."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from rich.progress import track

from datamodules import celeba, div2k, ffhq, realsr
from datamodules.degradations.degradation import Degradation
from datamodules.degradations.levels import from_uint8, to_uint8
from datamodules.held_out import held_out
from datamodules.images import ImageError, decode, find_images
from datamodules.prepare.plan import plan
from datamodules.prepare.preview import preset
from datamodules.prepare.shard_writer import PackError, SplitSettings, atomic_file, summary, write_split
from datamodules.stream.pairs import pair_files
from datamodules.stream.sources import printable, unique_keys

Build = Callable[[list[str], int | None], Degradation]  # of config files, and of a scale instead of theirs

_log = logging.getLogger(__name__)

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
    val: str | int | None = None,
    lr: str | None = None,
    make_lr: str | None = None,
    scale: int = 4,
    crop: int | None = None,
    step: int | None = None,
    per_shard: int = 256,
    licence: str = "",
    leave_out: bool = False,
    overwrite: bool = False,
    workers: int = os.cpu_count() or 1,
    *,
    build: Build | None = None,
) -> None:
    """Packs a folder of images, or of HR/LR pairs, into WebDataset shards.

    Args:
        folder: images; or pairs, in two sub-folders called hr and lr, or gt and lq.
        out: folder for the shards and dataset.json; a killed run continues there.
        name: of the set; the folder's name by default.
        split: of the set: train, val, test, ...
        val: photographs that are set aside for validation and packed as its split: a share such as 10%, or a number;
            the same ones each time, all sub-images of a photograph together.
        lr: folder of the LR partners, wherever it is; its files have the names of the HR files, or end in x4, _LR4, ...
        make_lr: a preset of configs/data/degradation, such as bicubic or realesrgan; the LR partners are made with it,
            as PNG files in `out`/lr_PRESET_xSCALE, and packed beside the HR images. Each image is degraded once, where
            a training without them degrades it anew each time.
        scale: HR size over LR size, for `make_lr`.
        crop: side of the square sub-images; whole images by default. DIV2K is usually cut with 480.
        step: between sub-images; `crop` by default. DIV2K is usually cut with 240.
        per_shard: samples in a shard.
        licence: noted in dataset.json.
        leave_out: continue without images that are unreadable or too small, instead of stopping.
        overwrite: write the shards of this set anew, whatever is there.
        workers: processes.
        build: makes the degradation of `make_lr`; only the command line knows how configs are read.

    Raises:
        PackError: options exclude each other, or the images cannot be packed.
        DataError: an image has no partner, or `val` leaves no photograph on one side.
        FileNotFoundError: there is no image, or no such preset.
    """
    images, target = Path(folder).expanduser(), Path(out).expanduser()
    hr_root, lr_root = _hr_and_lr(images, lr)
    if val is not None and split != "train":
        raise PackError(f"val and split {split}: val packs the splits train and val; leave one of the two out")
    hr_files = find_images(hr_root)
    if make_lr is not None:
        if lr_root is not None or build is None:
            raise PackError(f"make_lr: the LR images are already in {lr_root}; leave make_lr out")
        lr_root = target / f"lr_{make_lr}_x{scale}"
        hr_files = _write_lr(hr_files, hr_root, lr_root, build([str(preset(make_lr))], scale), leave_out)

    name = printable(images.resolve().name) if name is None else name
    aside = [False] * len(hr_files)
    if val is not None:
        aside = held_out([file.relative_to(hr_root) for file in hr_files], val)
    partners = _partners(hr_files, hr_root, lr_root, made=make_lr is not None)
    for part, chosen in (("val", True), (split, False)) if val is not None else ((split, False),):
        hr = [file for file, away in zip(hr_files, aside, strict=True) if away == chosen]
        samples = plan(hr, hr_root, partners, crop, step, leave_out)
        settings = SplitSettings(name, part, per_shard, licence, leave_out)
        packed = write_split(samples, target, settings, workers=workers, replace="always" if overwrite else "never")
        print(summary(settings, target, len(hr), samples, packed))


def _partners(hr: Sequence[Path], root: Path, lr_root: Path | None, *, made: bool) -> dict[Path, Path] | None:
    """The LR file of each HR file; None where there are none."""
    if lr_root is None:
        return None
    return {file: _lr_path(file, root, lr_root) for file in hr} if made else dict(pair_files(hr, find_images(lr_root)))


def _lr_path(file: Path, root: Path, lr_root: Path) -> Path:
    """Where the LR partner of an HR file is written."""
    relative = file.relative_to(root)
    return lr_root / relative.with_name(f"{relative.name}.png")


def _write_lr(hr: Sequence[Path], root: Path, lr_root: Path, degradation: Degradation, leave_out: bool) -> list[Path]:
    """Writes the LR partner of each image; returns the images that have one.

    Sides are cut at the right and at the bottom to a multiple of the scale, as `plan` expects of pairs.

    Raises:
        PackError: without `leave_out`: an image cannot be read, or is too small for the degradation.
    """
    written = []
    keys = unique_keys([file.relative_to(root) for file in hr])
    for file, key in track(list(zip(hr, keys, strict=True)), f"degrading into {lr_root}", transient=True):
        try:
            image = from_uint8(torch.from_numpy(decode(file, str(file)).copy()).permute(2, 0, 1)[None])
            height, width = (side - side % degradation.scale for side in image.shape[-2:])
            lr = degradation(image[..., :height, :width], keys=[key], epoch=0, seed=0)
        except (ImageError, ValueError) as error:
            if not leave_out:
                raise PackError(f"{error}; take it out, or set leave_out to true") from error
            _log.warning("%s; left out", error)
            continue

        path = _lr_path(file, root, lr_root)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part:
            Image.fromarray(to_uint8(lr[0]).permute(1, 2, 0).contiguous().numpy()).save(part, "PNG")
        written.append(file)
    return written


def _hr_and_lr(folder: Path, lr: str | None) -> tuple[Path, Path | None]:
    """The folder of the HR images, and that of their LR partners if there are any."""
    if lr is not None:
        return folder, Path(lr).expanduser()
    for hr_name, lr_name in _PAIR_FOLDERS:
        if (folder / hr_name).is_dir() and (folder / lr_name).is_dir():
            return folder / hr_name, folder / lr_name
    return folder, None


def main(arguments: Sequence[str] | None = None, build: Build | None = None) -> None:
    """Packs a published set if the first argument is its name, else a folder; a wrong argument is one message.

    Args:
        arguments: what follows `lightning pack`; those of the process by default.
        build: see `pack_folder`.
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
        parser = ArgumentParser(prog=program, epilog=epilog)
        parser.add_function_arguments(prepare, as_group=False, as_positional=True, skip={"build"}, fail_untyped=True)
        given = parser.instantiate(parser.parse_args(words)).as_dict()
        if prepare is pack_folder:
            given["build"] = build
        prepare(**given)
        print(f"next: lightning doctor {shlex.quote(given['out'])}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
