"""Small images, tars and sources for the tests of data."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.stream.sources import BadSample, Record, Source


def picture(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    """A smooth random colour image."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def save(path: Path, seed: int, height: int = 24, width: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, height, width).save(path)
    return path


def write_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class Numbers(Source):
    """Records in memory whose image says which one it is; those in `damaged` cannot be read."""

    def __init__(self, counts: Sequence[int], damaged: Sequence[int] = (), size: tuple[int, int] = (12, 16)) -> None:
        self.counts, self.damaged = list(counts), set(damaged)
        self.files = [png(picture(index, *size)) for index in range(sum(counts))]

    @property
    def groups(self) -> list[int]:
        return self.counts

    def record(self, index: int) -> Record:
        if index in self.damaged:
            raise BadSample(f"n/{index}: broken")
        return Record(f"n/{index}", self.files[index])

    def describe(self, index: int) -> str:
        return f"n/{index}"
