"""Where samples come from: numbered records of encoded images, however they are stored."""

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count
from pathlib import Path, PurePosixPath

from datamodules.images import ImageError, Pixels, decode

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python spells such bytes in the names of files


@dataclass(frozen=True)
class Record:
    """One sample as stored: `hr` and `lr` are encoded images, as bytes or as the path of a file."""

    key: str  # "div2k/0801"
    hr: bytes | Path
    lr: bytes | Path | None = None


@dataclass(frozen=True)
class Sample:
    """One decoded sample; only packed pairs have an `lr`."""

    key: str
    hr: Pixels  # [H,W,3]
    lr: Pixels | None = None  # [h,w,3]
    attention: Pixels | None = None  # [h,w,3], a grey map of the whole LR image, where a folder of maps is given


class BadSample(Exception):
    """A sample that cannot be used; the message names it and says why."""


class DataError(ValueError):
    """The data cannot be used; the message names what is wrong and the way out."""


class Source(ABC):
    """Numbered records in groups that are stored together (the shards of a set, or one group for a folder)."""

    @property
    @abstractmethod
    def groups(self) -> list[int]:
        """How many records each group holds; they are numbered group after group."""

    @abstractmethod
    def record(self, index: int) -> Record:
        """Reads one record.

        Raises:
            BadSample: it is damaged or missing.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """The key or the location of a record, for messages."""

    def duplicates(self) -> list[str]:
        """Keys that occur more than once."""
        return []

    def damage(self) -> list[str]:
        """What is wrong with the files that hold the records, as far as it can be told before they are read."""
        return []

    def __len__(self) -> int:
        return sum(self.groups)

    def sample(self, index: int, paired: bool) -> Sample:
        """Reads and decodes one record.

        Raises:
            BadSample: it is damaged or missing, or (with `paired`) has no LR partner.
        """
        record = self.record(index)
        if paired and record.lr is None:
            raise BadSample(
                f"{record.key}: its LR partner is missing (pack HR with lr, the folder of the LR images, or set paired "
                "to false)"
            )

        try:
            hr = decode(record.hr, f"{record.key} (HR)")
            lr = decode(record.lr, f"{record.key} (LR)") if paired and record.lr is not None else None
        except ImageError as error:
            raise BadSample(str(error)) from error
        return Sample(record.key, hr, lr)


class FileSource(Source):
    """Image files of a folder; `lr`, if given, holds the LR partner of each HR file in the same order."""

    def __init__(self, name: str, root: Path, hr: list[Path], lr: list[Path | None] | None = None) -> None:
        self.hr = hr
        self.lr = lr or [None] * len(hr)
        name = printable(name)
        self.keys = [f"{name}/{key}" if name else key for key in unique_keys([file.relative_to(root) for file in hr])]

    @property
    def groups(self) -> list[int]:
        """All files are one group."""
        return [len(self.hr)]

    def record(self, index: int) -> Record:
        """The paths of one sample."""
        return Record(self.keys[index], self.hr[index], self.lr[index])

    def describe(self, index: int) -> str:
        """The path of the HR file."""
        return str(self.hr[index])


class ConcatSource(Source):
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._starts = [0, *accumulate(len(source) for source in self.sources)]

    @property
    def groups(self) -> list[int]:
        """The groups of each source in turn."""
        return [group for source in self.sources for group in source.groups]

    def record(self, index: int) -> Record:
        """The record, read by the source that holds it."""
        source, number = self._locate(index)
        return source.record(number)

    def describe(self, index: int) -> str:
        """The location, as named by the source that holds the record."""
        source, number = self._locate(index)
        return source.describe(number)

    def duplicates(self) -> list[str]:
        """Those of each source; sets of different names have no key in common."""
        return [key for source in self.sources for key in source.duplicates()]

    def damage(self) -> list[str]:
        """That of each source."""
        return [text for source in self.sources for text in source.damage()]

    def _locate(self, index: int) -> tuple[Source, int]:
        number = bisect_right(self._starts, index) - 1
        return self.sources[number], index - self._starts[number]


class AttentionMapSource(Source):
    """Samples of another source with the attention map of each, from `<folder>/<key without the set's name>.png`."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder

    @property
    def groups(self) -> list[int]:
        """Those of the other source."""
        return self.source.groups

    def record(self, index: int) -> Record:
        """That of the other source."""
        return self.source.record(index)

    def describe(self, index: int) -> str:
        """As the other source describes it."""
        return self.source.describe(index)

    def duplicates(self) -> list[str]:
        """Those of the other source."""
        return self.source.duplicates()

    def damage(self) -> list[str]:
        """That of the other source."""
        return self.source.damage()

    def sample(self, index: int, paired: bool) -> Sample:
        """The other source's sample, with its map.

        Raises:
            BadSample: either is damaged or missing.
        """
        sample = self.source.sample(index, paired)
        path = self.folder / f"{sample.key.split('/', 1)[-1]}.png"
        try:
            return replace(sample, attention=decode(path, str(path)))
        except ImageError as error:
            raise BadSample(f"{sample.key}: its attention map is missing or damaged: {error}") from error


def unique_keys(names: Sequence[Path], dot: str = ".") -> list[str]:
    """A key for each file, all different: its name without the suffix, or with it where two differ in nothing else.

    Names that still coincide are numbered.

    Args:
        names: of the files, below their folder.
        dot: what is written for a dot.
    """
    written = [printable(name.as_posix()) for name in names]
    long = [name.replace(".", dot) for name in written]
    keys = [PurePosixPath(name).with_suffix("").as_posix().replace(".", dot) for name in written]

    while ambiguous := [index for index in _repeated(keys) if keys[index] != long[index]]:
        for index in ambiguous:
            keys[index] = long[index]

    for index in _repeated(keys):
        if keys[index] in keys[:index]:
            candidates = (f"{keys[index]}-{number}" for number in count(2))
            keys[index] = next(candidate for candidate in candidates if candidate not in keys)
    return keys


def printable(name: str) -> str:
    """The name of a file with bytes that are not UTF-8 written as in URLs, such as `caf%E9`."""
    return _NOT_UTF8.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name)


def _repeated(keys: Sequence[str]) -> list[int]:
    """The places of keys that occur more than once."""
    number = Counter(keys)
    return [index for index, key in enumerate(keys) if number[key] > 1]
