"""The sets that every paper reports, as plain folders: Set5, Set14, B100, Urban100, Manga109."""

from pathlib import Path
from typing import Any, Literal

from datamodules.base import SRDataModule
from datamodules.images import find_images
from datamodules.stream.pairs import pair_files
from datamodules.stream.sources import FileSource, Source

_IMAGES = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100, "Manga109": 109}
_ALIASES = {"B100": ("B100", "BSD100", "BSDS100")}
_HR = ("HR", "GTmod12", "GTmod{scale}", "X{scale}/GT", "x{scale}/gt", "original", "image_SRF_{scale}", ".")
_LR = ("LR_bicubic/X{scale}", "LRbicx{scale}", "X{scale}/LR", "x{scale}/lr", "image_SRF_{scale}")


class BenchmarkSet(SRDataModule):
    """One of the standard test sets, for validation and test; it has nothing to train on.

    The layouts of EDSR (`Set5/HR`, `Set5/LR_bicubic/X4`), BasicSR (`Set5/GTmod12`, `Set5/LRbicx4`), SelfExSR
    (`Set5/image_SRF_4/*_HR.png`) and a bare folder are recognised. LR is MATLAB's bicubic of HR unless `paired` asks
    for the set's own LR files.

    Args:
        root: folder that holds the sets.
        name: which one.
        scale: HR size over LR size.
        options: those of `SRDataModule`.
    """

    def __init__(
        self,
        root: str = "data/benchmark",
        name: Literal["Set5", "Set14", "B100", "Urban100", "Manga109"] = "Set5",
        scale: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(scale=scale, crop=scale, **options)
        self.root, self.set = Path(root).expanduser(), name

    def source(self, split: str) -> Source:
        """All images of the set.

        Raises:
            FileNotFoundError: the set does not exist or is incomplete; or `split` is "train".
            DataError: with `paired`, an image has no LR partner.
        """
        if split == "train":
            raise FileNotFoundError(f"{self.set} is for test only: train on another set, such as one of configs/data")

        hr = [file for file in self._files(_HR) if not file.stem.endswith("_LR")]
        if len(hr) != _IMAGES[self.set]:
            raise FileNotFoundError(f"{self.root}: holds {len(hr)} images of {self.set}, which has {_IMAGES[self.set]}")
        if not self.paired:
            return FileSource(self.set.lower(), hr[0].parent, hr)

        lr = [file for file in self._files(_LR) if not file.stem.endswith("_HR")]
        pairs = pair_files(hr, lr)
        return FileSource(self.set.lower(), hr[0].parent, [hr for hr, _ in pairs], [lr for _, lr in pairs])

    def _files(self, layouts: tuple[str, ...]) -> list[Path]:
        names = [self.root / alias for alias in (*_ALIASES.get(self.set, (self.set,)), self.set.lower())]
        tried = [folder / layout.format(scale=self.scale) for folder in names for layout in layouts]
        for folder in tried:
            if folder.is_dir():
                return find_images(folder)
        raise FileNotFoundError(f"{self.root}: no {self.set} (looked for {', '.join(str(folder) for folder in tried)})")
