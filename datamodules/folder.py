"""The user's own images: plain folders for training and scoring, any image file or folder to enlarge."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.base import SRDataModule
from datamodules.batch import Batch
from datamodules.degradations.levels import from_uint8
from datamodules.images import ImageError, decode, find_images
from datamodules.stream.sources import FileSource, Source, unique_stems
from datamodules.stream.streams import stack

_log = logging.getLogger(__name__)
_PURPOSE = {"train": "train on", "val": "validate on", "test": "test on", "predict": "enlarge"}


class Folder(SRDataModule):
    """Folders of image files, read as they are.

    Args:
        train: folder of HR images for training.
        val: folder of HR images for validation.
        test: folder of HR images for test.
        predict: an LR image, or a folder of them, to enlarge; sizes and formats may be mixed.
        options: those of `SRDataModule`.

    Attributes:
        failures: the images of `predict` that this process could not read, as (path, reason); the others are enlarged.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.folders = {"train": train, "val": val, "test": test, "predict": predict}
        self.failures: list[tuple[Path, str]] = []

    def _folder(self, split: str) -> Path:
        folder = self.folders[split]
        if folder is None:
            raise FileNotFoundError(f"no images to {_PURPOSE[split]}: set {split} to their folder")
        return Path(folder).expanduser()

    def source(self, split: str) -> Source:
        """The files of one split.

        Raises:
            FileNotFoundError: the folder of the split is not given, does not exist or holds no image.
        """
        folder = self._folder(split)
        return FileSource(folder.name, folder, find_images(folder))

    def predict_dataloader(self) -> "PredictImages":
        """The images to enlarge, one at a time, each on one rank; keys are their names below the folder."""
        path = self._folder("predict")
        files = find_images(path)
        root = path if path.is_dir() else path.parent
        jobs = list(zip(unique_stems(files, root), files, strict=True))
        return PredictImages(jobs[self.rank.index :: self.rank.world_size], self.failures)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Makes a batch without `hr` of an image to enlarge; other batches are those of `SRDataModule`."""
        if "predict" not in batch:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        return self.assemble(from_uint8(batch["predict"]), batch["key"])


class PredictImages:
    """Decodes the files to enlarge one by one, in this process; unreadable ones are logged and added to `failures`."""

    def __init__(self, jobs: list[tuple[str, Path]], failures: list[tuple[Path, str]]) -> None:
        self.jobs, self.failures = jobs, failures

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One image at a time: `predict`, uint8 `[1,3,h,w]`, and `key`."""
        for key, path in self.jobs:
            try:
                image = decode(path, str(path))
            except ImageError as error:
                _log.error("%s; left out", error)
                self.failures.append((path, str(error)))
                continue
            yield {"predict": stack([image]), "key": [key]}
