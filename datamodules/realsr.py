"""Pairs from real cameras: RealSR V3 and DRealSR."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.images import find_images
from datamodules.prepare.plan import plan
from datamodules.prepare.shard_writer import PackError, SplitSettings, summary, write_split
from datamodules.shard_folder import ShardFolder
from datamodules.stream.pairs import pair_files

_LICENCE = {
    "realsr": "RealSR: for academic research, https://github.com/csjcai/RealSR",
    "drealsr": "DRealSR: for academic research, "
    "https://github.com/xiezw5/Component-Divide-and-Conquer-for-Real-World-Image-Super-Resolution",
}


class RealSR(ShardFolder):
    """RealSR, third version (Cai et al., ICCV 2019): Canon and Nikon, LR and HR of different sizes.

    Two protocols are in use. StableSR's family tests on the centre 128x128 of LR against 512x512 of HR (`val_crop:
    512`); ResShift's on whole images (`val_crop: null`). Both take the test split at scale 4.

    Args:
        root: folder or URL of the shards.
        scale: 2, 3 or 4.
        options: those of `SRDataModule`.
    """

    prepare = "lightning pack realsr RAW {root} --name {family} --scale {scale}"
    set: ClassVar[str] = "realsr"

    def __init__(self, root: str = "data/realsr", scale: int = 4, **options: Any) -> None:
        train, test = f"{self.set}_x{scale}-train", f"{self.set}_x{scale}-test"
        super().__init__(root, train, test, test, scale=scale, paired=True, **options)


class DRealSR(RealSR):
    """DRealSR (Wei et al., ECCV 2020): five cameras; protocols as for RealSR.

    Args:
        root: folder or URL of the shards.
        scale: 2, 3 or 4.
        options: those of `SRDataModule`.
    """

    set = "drealsr"

    def __init__(self, root: str = "data/realsr", scale: int = 4, **options: Any) -> None:
        super().__init__(root, scale, **options)


def prepare(
    raw: str,
    out: str,
    name: Literal["realsr", "drealsr"] = "realsr",
    scale: int = 4,
    crop: int | None = None,
    step: int | None = None,
    splits: Sequence[Literal["train", "test"]] = ("train", "test"),
    leave_out: bool = False,
    overwrite: bool = False,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Packs the pairs of one scale as published.

    Args:
        raw: for realsr the folder with Canon/ and Nikon/ (`RealSR(V3)`), for drealsr the one with Train_x4/ and
            Test_x4/.
        out: folder for the shards.
        name: realsr or drealsr.
        scale: 2, 3 or 4.
        crop: side of the training sub-images; whole images by default.
        step: between training sub-images.
        splits: which to pack; the test split alone is enough to test on.
        leave_out: continue without pairs that are unreadable or too small, instead of stopping.
        overwrite: write the shards anew, whatever is there.
        workers: processes.
    """
    source, target = Path(raw).expanduser(), Path(out).expanduser()
    find = realsr_pairs if name == "realsr" else drealsr_pairs
    for split in splits:
        hr, lr = find(source, split, scale)
        cut = (crop, step) if split == "train" else (None, None)
        samples = plan(hr, source, dict(pair_files(hr, lr)), *cut, leave_out=leave_out)
        settings = SplitSettings(f"{name}_x{scale}", split, 256 if cut[0] else 32, _LICENCE[name], leave_out)
        packed = write_split(samples, target, settings, workers=workers, replace="always" if overwrite else "never")
        print(summary(settings, target, len(hr), samples, packed))


def realsr_pairs(raw: Path, split: str, scale: int) -> tuple[list[Path], list[Path]]:
    """HR and LR files of RealSR V3: {Canon,Nikon}/{Train,Test}/4/Canon_001_HR.png and Canon_001_LR4.png.

    Raises:
        PackError: the folders do not exist or hold no image.
    """
    folders = [raw / camera / split.capitalize() / str(scale) for camera in ("Canon", "Nikon")]
    files = [file for folder in folders if folder.is_dir() for file in find_images(folder)]
    if not files:
        raise PackError(f"{folders[0]}: no such folder with images; RAW must hold Canon/ and Nikon/ of RealSR(V3)")
    hr = [file for file in files if file.stem.endswith("_HR")]
    return hr, [file for file in files if file.stem.endswith(f"_LR{scale}")]


def drealsr_pairs(raw: Path, split: str, scale: int) -> tuple[list[Path], list[Path]]:
    """HR and LR files of DRealSR: Test_x4/test_HR/Canon_10_x4.png and Test_x4/test_LR/Canon_10_x1.png.

    Raises:
        PackError: the folders do not exist or hold no image.
    """
    folder = raw / f"{split.capitalize()}_x{scale}"
    if not folder.is_dir():
        raise PackError(f"{folder}: no such folder; RAW must hold Train_x{scale}/ and Test_x{scale}/ of DRealSR")
    return find_images(folder / f"{split}_HR"), find_images(folder / f"{split}_LR")
