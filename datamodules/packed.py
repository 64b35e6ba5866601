"""Sets in shards: what `datamodules.pack` wrote, or anyone's tars, below a folder or a URL."""

import os
from typing import Any, ClassVar

from datamodules.base import SRDataModule
from datamodules.shards import Shards, expand, packed
from datamodules.sources import Joined, Source


class Packed(SRDataModule):
    """A set packed by `python -m datamodules.pack`; subclasses fix the names of well-known ones.

    Args:
        root: folder or URL of the shards and their `dataset.json`.
        train: the set to train on, `{name}-{split}` as packed; several are joined by "+". In place of a set, shards
            themselves can be given, as paths or URLs with braces: "https://host/x-{000000..000015}.tar".
        val: the set to validate on.
        test: the set to test on.
        options: those of `SRDataModule`.
    """

    prepare: ClassVar[str] = "python -m datamodules.pack FOLDER {root} --name {name} --split {split}"
    without: ClassVar[str] = "train on the bundled photographs with --config configs/data/photos.yaml"

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
            FileNotFoundError: they are not there; the message names the command that makes them.
        """
        sets = self.sets[split]
        if sets is None:
            raise FileNotFoundError(f"no {split} set: give data.init_args.{split}")
        try:
            if ".tar" in sets:
                return Shards(expand(os.path.expanduser(sets)), sets.rpartition("/")[2].partition("-")[0])
            return Joined([packed(self.root, wanted) for wanted in sets.split("+")])
        except FileNotFoundError as error:
            ways = f"prepare it with `{self._command(sets)}`, or {self.without}"
            raise FileNotFoundError(f"{type(self).__name__} is not ready: {error}; {ways}") from error

    def _command(self, sets: str) -> str:
        name, _, split = sets.partition("+")[0].rpartition("-")
        family = name.partition("_")[0]
        crop = self.train_crop.size
        return self.prepare.format(root=self.root, name=name, split=split, family=family, crop=crop, scale=self.scale)
