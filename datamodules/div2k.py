"""DIV2K and Flickr2K: their preparation, which downloads what is missing, and the data modules that read them."""

import os
from pathlib import Path
from typing import Any

from datamodules.images import find_images
from datamodules.prepare.archives import Archive, fetch_images
from datamodules.prepare.plan import plan
from datamodules.prepare.shard_writer import PackError, SplitSettings, summary, write_split
from datamodules.shard_folder import ShardFolder
from datamodules.stream.pairs import pair_files

_CROP, _STEP = 480, 240  # of training sub-images, as everywhere
_DIV2K = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"
_LICENCE = {
    "div2k": "DIV2K: for academic research purpose only, https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    "flickr2k": "Flickr2K: images from Flickr under their authors' licences, for academic research",
}
# the HR digests are those of TensorFlow Datasets
_HR = {
    ("div2k", "train"): Archive(
        f"{_DIV2K}DIV2K_train_HR.zip",
        "DIV2K_train_HR",
        800,
        "sha256:9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
    ),
    ("div2k", "valid"): Archive(
        f"{_DIV2K}DIV2K_valid_HR.zip",
        "DIV2K_valid_HR",
        100,
        "sha256:20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
    ),
    ("flickr2k", "train"): Archive(
        "https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar",
        "Flickr2K/Flickr2K_HR",
        2650,
        "md5:5d3f39443d5e9489bff8963f8f26cb03",
    ),
}
_LR_MD5 = {
    ("train", 2): "9a637d2ef4db0d0a81182be37fb00692",
    ("train", 3): "ad80b9fe40c049a07a8a6c51bfab3b6d",
    ("train", 4): "76c43ec4155851901ebbe8339846d93d",
    ("valid", 2): "1512c9a3f7bde2a1a21a73044e46b9cb",
    ("valid", 3): "18b1d310f9f88c13618c287927b29898",
    ("valid", 4): "21962de700c8d368c6ff83314480eff0",
}


class DIV2K(ShardFolder):
    """DIV2K (Agustsson and Timofte, CVPRW 2017): 800 photographs of 2K size to train on, 100 to validate on.

    Args:
        root: folder or URL of the shards.
        train: set to train on.
        val: set to validate on.
        test: set to test on.
        options: those of `SRDataModule`.
    """

    prepare = "lightning pack div2k RAW {root}"
    packed_side = _CROP

    def __init__(
        self,
        root: str = "data/div2k",
        train: str = "div2k-train",
        val: str = "div2k-valid",
        test: str = "div2k-valid",
        **options: Any,
    ) -> None:
        super().__init__(root, train, val, test, **options)


class DF2K(ShardFolder):
    """DIV2K and the 2650 photographs of Flickr2K (Lim et al., CVPRW 2017) together, validated on DIV2K's 100.

    Args:
        root: folder or URL of the shards of both.
        train: sets to train on.
        val: set to validate on.
        test: set to test on.
        options: those of `SRDataModule`.
    """

    prepare = "lightning pack div2k RAW {root} --flickr2k true"
    packed_side = _CROP

    def __init__(
        self,
        root: str = "data/div2k",
        train: str = "div2k-train+flickr2k-train",
        val: str = "div2k-valid",
        test: str = "div2k-valid",
        **options: Any,
    ) -> None:
        super().__init__(root, train, val, test, **options)


def _lr_archive(name: str, split: str, scale: int) -> Archive:
    """The published bicubic LR images; DIV2K's x8 are in a folder of another name."""
    if name == "flickr2k":
        whole = _HR[name, split]
        return Archive(whole.url, f"Flickr2K/Flickr2K_LR_bicubic/X{scale}", whole.images, whole.digest)
    if scale == 8:
        return Archive(f"{_DIV2K}DIV2K_{split}_LR_x8.zip", f"DIV2K_{split}_LR_x8", _HR[name, split].images)
    url, folder = f"{_DIV2K}DIV2K_{split}_LR_bicubic_X{scale}.zip", f"DIV2K_{split}_LR_bicubic/X{scale}"
    digest = _LR_MD5.get((split, scale))
    return Archive(url, folder, _HR[name, split].images, digest and f"md5:{digest}")


def prepare(
    raw: str,
    out: str,
    flickr2k: bool = False,
    crop: int | None = _CROP,
    step: int | None = _STEP,
    lr: int | None = None,
    leave_out: bool = False,
    overwrite: bool = False,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Packs DIV2K, and Flickr2K if wanted, into shards; archives that RAW lacks are downloaded.

    Args:
        raw: folder with DIV2K_train_HR, DIV2K_valid_HR, Flickr2K/Flickr2K_HR as published.
        out: folder for the shards.
        flickr2k: pack Flickr2K too.
        crop: side of the training sub-images; null packs whole images.
        step: between training sub-images.
        lr: also pack the published bicubic LR images of this scale (use them with `paired: true`).
        leave_out: continue without images that are missing, unreadable or too small, instead of stopping.
        overwrite: write the shards anew, whatever is there.
        workers: processes.
    """
    source, target = Path(raw).expanduser(), Path(out).expanduser()
    for (name, split), archive in _HR.items():
        if name == "div2k" or flickr2k:
            hr_files = _images(source, archive, leave_out)
            lr_files = _images(source, _lr_archive(name, split, lr), leave_out) if lr else None
            partners = None if lr_files is None else dict(pair_files(hr_files, lr_files))
            cut = (crop, step) if split == "train" else (None, None)
            samples = plan(hr_files, source / archive.folder, partners, *cut, leave_out=leave_out)

            settings = SplitSettings(name, split, 256 if cut[0] else 16, _LICENCE[name], leave_out)
            packed = write_split(samples, target, settings, workers=workers, replace="always" if overwrite else "never")
            print(summary(settings, target, len(hr_files), samples, packed))


def _images(raw: Path, archive: Archive, leave_out: bool) -> list[Path]:
    files = find_images(fetch_images(archive, raw))
    if len(files) != archive.images and not leave_out:
        raise PackError(
            f"{raw / archive.folder}: holds {len(files)} images, the published set has {archive.images}; "
            "complete it, or set leave_out to true to pack those"
        )
    return files
