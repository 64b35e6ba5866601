"""Small images, tars and sources for the tests of data."""

import io
import struct
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


def rgb_profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """An ICC profile with primaries in XYZ (D50) and the tone curve of sRGB."""
    curve = b"para" + struct.pack(">4xHH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {
        name: b"XYZ \0\0\0\0" + fixed(*value)
        for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), (red, green, blue), strict=True)
    }
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    return icc_profile(b"RGB ", tags)


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of a colour space with the given tags, a white of D50, and names."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), **tags}
    tags |= {
        name: b"mluc" + struct.pack(">4xII2s2sII", 1, 12, b"en", b"US", 2, 28) + b"\0x" for name in (b"desc", b"cprt")
    }
    place, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", place + len(content), len(value))
        content += value + b"\0" * (-len(value) % 4)
    header = struct.pack(">I4xI4s4s4s", place + len(content), 0x04300000, b"mntr", space, b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(*D50)
    return header.ljust(128, b"\0") + table + content


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


D50 = (0.9642, 1.0, 0.8249)
DISPLAY_P3 = rgb_profile((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
