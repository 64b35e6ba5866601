"""Low-resolution photographs without targets, for tests with scores that need none."""

from pathlib import Path
from typing import Any

from datamodules.base import SRDataModule
from datamodules.batch import Batch
from datamodules.degradations.levels import from_uint8
from datamodules.images import find_images
from datamodules.stream.crops import CenterCrop
from datamodules.stream.sources import FileSource, Source
from datamodules.stream.streams import RawBatch


class LowResolution(SRDataModule):
    """A folder of photographs that are enlarged and judged without targets, such as RealSet65.

    Args:
        root: The folder.
        options: Those of `SRDataModule`; images are neither degraded nor cropped.
    """

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()
        self.val_crop = CenterCrop(None, 1)

    def source(self, split: str) -> Source:
        """All photographs of the folder.

        Raises:
            FileNotFoundError: there are none; or `split` is "train".
        """
        if split == "train":
            raise FileNotFoundError(f"{self.root}: photographs without targets are for test only")
        return FileSource(self.root.name, self.root, find_images(self.root))

    def on_after_batch_transfer(self, batch: RawBatch | Batch, dataloader_idx: int) -> Batch:
        """A batch without `hr`."""
        if "draw" not in batch:
            return batch
        return self.assemble(from_uint8(batch["hr"]), batch["key"])
