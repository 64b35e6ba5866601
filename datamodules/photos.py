"""The colour photographs that ship inside scikit-image: real images on any machine, without a network."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import skimage

from datamodules.base import SRDataModule
from datamodules.images import image_size
from datamodules.prepare.samples import PlannedImage, PlannedSample, tiles
from datamodules.prepare.shard_writer import SplitSettings, write_split
from datamodules.stream.remote import cache_folder
from datamodules.stream.shards import open_split
from datamodules.stream.sources import Source

LICENCE = "each photograph's own: see the documentation of skimage.data"
TRAIN = ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "motorcycle_right.png",
         "retina.jpg", "rocket.jpg")  # fmt: skip
VAL = ("chelsea.png", "coffee.png")


class Photos(SRDataModule):
    """Nine photographs, split by photograph: two for validation and test, seven for training.

    They are written once into shards in a cache folder: the training ones as overlapping square tiles (so that a small
    patch costs a small decode), the others whole.

    Args:
        root: folder for the shards; by default `photos` in the cache folder (`$DIFFSR_CACHE` or the XDG cache).
        tile_size: side of the training tiles; `crop` cannot be larger.
        options: those of `SRDataModule`.

    Raises:
        ValueError: `crop` is larger than `tile_size`.
    """

    def __init__(self, root: str | None = None, tile_size: int = 240, **options: Any) -> None:
        super().__init__(**options)
        if self.train_crop.size > tile_size:
            raise ValueError(
                f"crop: {self.train_crop.size} is larger than the tiles of {tile_size}; raise `tile_size` too"
            )
        self.tile_size = tile_size
        base = Path(root).expanduser() if root else cache_folder() / "photos"
        self.folder = base / f"{version('scikit-image')}-{tile_size}"

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], **_: Any) -> str | None:
        """Nothing is: `prepare_data` writes the shards."""
        return None

    def prepare_data(self) -> None:
        """Writes the shards unless they exist."""
        training = list(_training_tiles(self.tile_size))
        whole = [PlannedSample(Path(name).stem, PlannedImage(bundled(name))) for name in VAL]
        for split, samples in (("train", training), ("val", whole)):
            settings = SplitSettings("photos", split, per_shard=32, licence=LICENCE)
            write_split(samples, self.folder, settings, replace="changed")

    def source(self, split: str) -> Source:
        """Tiles of the training photographs, or whole validation photographs."""
        return open_split(str(self.folder), "photos-train" if split == "train" else "photos-val")


def bundled(name: str) -> Path:
    """The file of one of scikit-image's photographs."""
    return Path(skimage.__file__).parent / "data" / name


def _training_tiles(tile: int) -> Iterator[PlannedSample]:
    """Tiles at half steps; at whole steps in the two large photographs, which would outnumber the others."""
    for name in TRAIN:
        size = image_size(bundled(name))
        step = tile if min(size) >= 3 * tile else tile // 2
        for number, box in enumerate(tiles(*size, tile, step)):
            yield PlannedSample(f"{Path(name).stem}_{number:03d}", PlannedImage(bundled(name), box))
