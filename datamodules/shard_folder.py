"""Sets in shards, below a folder or a URL: what `lightning pack` wrote, or any WebDataset tars."""

import os
from pathlib import Path
from typing import Any, ClassVar

from datamodules.base import SRDataModule
from datamodules.plain_folder import LAYOUTS, plain_folder
from datamodules.stream.shards import ShardSource, expand_braces, list_splits, open_split
from datamodules.stream.sources import ConcatSource, DataError, Source

_PURPOSE = {"train": "train on", "val": "validate on", "test": "test on"}


class ShardFolder(SRDataModule):
    """A set packed by `lightning pack`; subclasses fix the names of well-known sets.

    To validate and test, `root` may hold the images themselves instead, see `datamodules.plain_folder`.

    Args:
        root: folder or URL of the shards and their `dataset.json`.
        train: the set to train on, `{name}-{split}` as packed; several are joined by "+". Instead of a set, shards
            themselves can be given, as paths or URLs with braces: "https://host/x-{000000..000015}.tar". By default the
            one set in `root` whose split is train.
        val: the set to validate on; by default the one in `root` whose split is val. Without any, a training goes
            without validation.
        test: the set to test on; by default `val`, else the one in `root` whose split is test, else val.
        options: those of `SRDataModule`.
    """

    prepare: ClassVar[str] = "lightning pack FOLDER {root} --name {name} --split {split}"
    packed_side: ClassVar[int | None] = None  # of the sub-images that `prepare` makes; None for whole images

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = os.path.expanduser(root).rstrip("/")
        self.sets = {"train": train, "val": val, "test": test or val}

    def source(self, split: str) -> Source:
        """The shards of one split.

        Raises:
            FileNotFoundError: they do not exist; the message names the command that makes them.
        """
        sets = self.sets[split]
        try:
            if sets is None:
                sets = self._only(split)
            if ".tar" in sets:
                name = sets.rpartition("/")[2].partition("-")[0]
                return ShardSource(expand_braces(os.path.expanduser(sets)), name)
            return ConcatSource([open_split(self.root, wanted) for wanted in sets.split("+")])
        except FileNotFoundError as error:
            plain = None if split == "train" else plain_folder(Path(self.root), paired=self.paired)
            if plain is not None:
                return plain
            raise FileNotFoundError(
                f"{type(self).__name__} is not ready: {error}; prepare it with `{self._command(sets or '')}` (to test "
                f"on, {self.root} may also hold {LAYOUTS}), or train on the bundled photographs with "
                "configs/data/photos.yaml"
            ) from error

    @property
    def validates(self) -> bool:
        """Whether `val` is given or found."""
        if self.sets["val"] is not None:
            return True
        try:
            return bool(self._found("val"))
        except FileNotFoundError:  # as is said where the training set is read
            return False

    def _only(self, split: str) -> str:
        """The one set in `root` for a split that was not named.

        Raises:
            FileNotFoundError: there is none.
            DataError: there are several.
        """
        found = self._found(split) or (self._found("val") if split == "test" else [])
        if not found:
            raise FileNotFoundError(f"{self.root}: holds no set to {_PURPOSE[split]}")
        if len(found) > 1:
            raise DataError(
                f"{self.root}: holds {', '.join(found)}; set {split} to one of them, or to several joined by '+'"
            )
        return found[0]

    def _found(self, split: str) -> list[str]:
        return [name for name in list_splits(self.root) if name.rpartition("-")[2] == split]

    def _command(self, sets: str) -> str:
        if not sets:
            return f"lightning pack FOLDER {self.root} --val 10%"
        name, _, split = sets.partition("+")[0].rpartition("-")
        family = name.partition("_")[0]
        crop, scale = self.train_crop.size, self.scale
        command = self.prepare.format(root=self.root, name=name, split=split, family=family, crop=crop, scale=scale)
        if self.packed_side is None or crop <= self.packed_side:
            return command
        side = crop * 5 // 4 // scale * scale  # room for random places
        return f"{command} --crop {side} --step {side // 2 // scale * scale}"
