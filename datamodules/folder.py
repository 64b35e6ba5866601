"""The user's own images: plain folders for training and scoring, any image file or folder to enlarge."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.base import SRDataModule
from datamodules.batch import Batch
from datamodules.degradations.levels import as_tensor, from_levels
from datamodules.held_out import held_out, is_share
from datamodules.images import ImageError, find_images
from datamodules.photograph import read_photograph
from datamodules.stream.sources import FileSource, Source, unique_keys

_log = logging.getLogger(__name__)
_PURPOSE = {"train": "train on", "val": "validate on", "test": "test on", "predict": "enlarge"}


class Folder(SRDataModule):
    """Folders of image files, read as they are.

    Args:
        train: folder of HR images for training.
        val: folder of HR images for validation; or how many photographs of `train` are set aside for it and not trained
            on, a share such as "10%" or a number (a folder of such a name is given as ./NAME). None trains without
            validation.
        test: folder of HR images for test; those of validation by default.
        predict: LR images to enlarge: a file, a folder, or several of either; sizes and formats may be mixed. Where
            several are given, the images of a folder are named below the folder's own name.
        options: those of `SRDataModule`.

    Attributes:
        failures: the images of `predict` that this process could not read, and why; the others are enlarged.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | int | None = None,
        test: str | None = None,
        predict: str | list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.share = val if val is not None and is_share(val) else None
        self.folders = {"train": train, "val": None if val is None else str(val), "test": test}
        self.predict = [predict] if isinstance(predict, str) else predict
        self.failures: dict[str, str] = {}

    def source(self, split: str) -> Source:
        """The files of one split.

        Raises:
            FileNotFoundError: the folder of the split is not given, does not exist or holds no image.
        """
        if split == "test" and self.folders["test"] is None and self.validates:
            split = "val"
        folder = self.folders["train" if split == "val" and self.share is not None else split]
        root = _given(split, None if folder is None else [folder])[0]

        files = find_images(root)
        if self.share is not None and split != "test":
            chosen = held_out([file.relative_to(root) for file in files], self.share)
            files = [file for file, aside in zip(files, chosen, strict=True) if aside == (split == "val")]
        return FileSource(Path(os.path.abspath(root)).name, root, files)

    @property
    def validates(self) -> bool:
        """Whether `val` is given."""
        return self.folders["val"] is not None

    def predict_dataloader(self) -> "PredictImages":
        """The images to enlarge, one at a time, each on one rank; keys are their names below the folder.

        Raises:
            FileNotFoundError: no image is given, or what is given does not exist or holds no image.
        """
        jobs = keyed({path: find_images(path) for path in _given("predict", self.predict)})
        return PredictImages(jobs[self.rank.index :: self.rank.world_size], self.failures)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves the pixels of an image to enlarge alone; other batches as Lightning does."""
        if "predict" not in batch:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return {**batch, "predict": batch["predict"].to(device)}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Makes a batch without `hr` of an image to enlarge; other batches are those of `SRDataModule`."""
        if "predict" not in batch:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        made = self.assemble(from_levels(batch["predict"]), batch["key"])
        made["photograph"] = batch["photograph"]
        return made


def keyed(given: Mapping[Path, Sequence[Path]]) -> list[tuple[str, Path]]:
    """The files of each file or folder that was given, with a name for each, which are all different.

    A file that is found twice is taken once. Where several are given, the images of a folder are named below its name.
    """
    names: dict[Path, Path] = {}
    for path, files in given.items():
        for file in files:
            names.setdefault(file, _name_below(path, file, alone=len(given) == 1))
    return list(zip(unique_keys(list(names.values())), names, strict=True))


def _given(split: str, paths: Sequence[str] | None) -> list[Path]:
    """The folders or files of a split.

    Raises:
        FileNotFoundError: there are none, or one is empty: as a path it would be the current folder.
    """
    if not paths or not all(paths):
        empty = "" if paths is None else f"{split} is empty; "
        raise FileNotFoundError(f"no images to {_PURPOSE[split]}: {empty}set {split} to their folder")
    return [Path(path).expanduser() for path in paths]


def _name_below(given: Path, file: Path, alone: bool) -> Path:
    """What a file is called: its path below the folder that was given, and that folder's name if it is not alone."""
    if file == given:
        return Path(file.name)
    below = file.relative_to(given)
    return below if alone else Path(os.path.abspath(given)).name / below


class PredictImages:
    """Decodes the files to enlarge one by one, in this process; unreadable ones are logged and added to `failures`."""

    def __init__(self, jobs: list[tuple[str, Path]], failures: dict[str, str]) -> None:
        self.jobs, self.failures = jobs, failures

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One image at a time: `predict`, uint8 or uint16 `[1,3,h,w]`, its `key`, and all of the `photograph`."""
        for key, path in self.jobs:
            try:
                photograph = read_photograph(path, str(path))
            except ImageError as error:
                _log.error("%s; left out", error)
                self.failures[str(path)] = str(error)
                continue
            yield {"predict": as_tensor(photograph.colours), "key": [key], "photograph": [photograph]}
