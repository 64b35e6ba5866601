"""CelebA's aligned faces at 160x160, as SRDiff uses them."""

import os
from pathlib import Path
from typing import Any

from datamodules.prepare.samples import PlannedImage, PlannedSample
from datamodules.prepare.shard_writer import PackError, SplitSettings, summary, write_split
from datamodules.shard_folder import ShardFolder

_PARTITION = {"0": "train", "1": "val", "2": "test"}  # the numbers in list_eval_partition.txt
_LICENCE = "CelebA: non-commercial research only, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_CENTRE = (0, 20, 178, 198)  # the middle 178x178 of an aligned 178x218 face
_SIDE = 160
_TESTED = 5000  # SRDiff tests on the first 5000 faces of the test split


class CelebA(ShardFolder):
    """CelebA (Liu et al., ICCV 2015): the centre 178x178 of an aligned face, resized to 160x160 by Pillow's bilinear.

    Split as published; the test set is the first 5000 faces of it, as in SRDiff (arXiv:2104.14951).

    Args:
        root: folder or URL of the shards.
        scale: HR size over LR size.
        options: those of `SRDataModule`.
    """

    prepare = "lightning pack celeba RAW {root}"

    def __init__(self, root: str = "data/celeba", scale: int = 8, **options: Any) -> None:
        super().__init__(root, "celeba-train", "celeba-val", "celeba-test", scale=scale, crop=_SIDE, **options)


def prepare(
    raw: str, out: str, leave_out: bool = False, overwrite: bool = False, workers: int = os.cpu_count() or 1
) -> None:
    """Packs CelebA's aligned faces.

    Args:
        raw: folder with img_align_celeba/ and list_eval_partition.txt, there or in Eval/.
        out: folder for the shards.
        leave_out: continue without faces that are missing or unreadable, instead of stopping.
        overwrite: write the shards anew, whatever is there.
        workers: processes.
    """
    samples: dict[str, list[PlannedSample]] = {split: [] for split in _PARTITION.values()}
    missing: list[Path] = []
    source, target = Path(raw).expanduser(), Path(out).expanduser()
    for name, split in _partition(source):
        path = source / "img_align_celeba" / name
        if path.exists():
            samples[split].append(PlannedSample(path.stem, PlannedImage(path, _CENTRE, _SIDE, "bilinear")))
        else:
            missing.append(path)

    if missing and not leave_out:
        more = f"{missing[0]} and {len(missing) - 1} more faces are missing"
        raise PackError(f"{more} (set leave_out to true to continue without them)")
    samples["test"] = samples["test"][:_TESTED]
    for split, faces in samples.items():
        settings = SplitSettings("celeba", split, 2048, _LICENCE, leave_out)
        packed = write_split(faces, target, settings, workers=workers, replace="always" if overwrite else "never")
        print(summary(settings, target, len(faces), faces, packed))


def _partition(raw: Path) -> list[tuple[str, str]]:
    """File name and split of every face."""
    for path in (raw / "list_eval_partition.txt", raw / "Eval" / "list_eval_partition.txt"):
        if path.is_file():
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
            return [(name, _PARTITION[number]) for name, number in lines]
    raise PackError(f"{raw}: has no list_eval_partition.txt, there or in Eval/")
