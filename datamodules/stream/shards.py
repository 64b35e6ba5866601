"""WebDataset shards as numbered records: tars of `key.hr.png`, `key.lr.png`, `key.json`, local or behind a URL.

A local shard is read by offset. A remote one is downloaded completely into a cache folder when its first sample is
needed, and read from there; it may be removed to make room for others, and is then downloaded again. Only image
members are ever read, and only an image decoder ever sees their bytes.
"""

import json
import logging
import re
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from datamodules.images import SUFFIXES
from datamodules.stream.remote import Unreachable, cache_folder, fetched, is_remote, read
from datamodules.stream.sources import BadSample, DataError, Record, Source

_NO_SAMPLE = re.compile(r"(^|/)(\.|__MACOSX/|__[^/]*__(\.|/|$)|(readme|licen[cs]e)\b)", re.IGNORECASE)
_BLOCK = 1 << 20  # bytes
_KEPT = 1 << 16  # samples whose places in shards a process keeps: about 30 MB, and several windows of the shuffle
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Entry:
    """The image members of one sample in a tar: role ("hr" or "lr") to (offset, size) of the bytes."""

    key: str
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    repeated: bool = False


@dataclass(frozen=True)
class TarIndex:
    """The samples that the headers of the tar at `path` list; `damage` is why reading them stopped early, or empty."""

    path: Path
    entries: list[Entry]
    damage: str = ""


def read_index(path: Path) -> TarIndex:
    """Reads only the headers of an uncompressed tar and groups its members into samples.

    Hidden members (`._0001.png`), `__meta__` and the like, READMEs and licences are no samples.

    Raises:
        OSError: the file cannot be opened.
    """
    entries: dict[str, Entry] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in filter(tarfile.TarInfo.isreg, tar):
                _add_member(entries, member)
            damage = _damage_at_end(path, tar.offset)
    except tarfile.TarError as error:
        damage = f"truncated or not an uncompressed tar ({error})"
    return TarIndex(path, list(entries.values()), damage)


def _damage_at_end(path: Path, end: int) -> str:
    """What is wrong after the last member: Python's reader stops there without an error."""
    with path.open("rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE:
            return "truncated: the end mark of a tar is missing"
        if any(mark):
            return f"damaged: no header at byte {end}, where one must be"
        while rest := file.read(_BLOCK):
            if any(rest):
                return "two tars in one file, of which only the first is read"
    return ""


def _add_member(entries: dict[str, Entry], member: tarfile.TarInfo) -> None:
    key, extension = base_plus_ext(member.name)
    if key is None or _NO_SAMPLE.search(member.name):
        return

    entry = entries.setdefault(key, Entry(key))
    role, _, suffix = extension.lower().rpartition(".")
    if f".{suffix}" not in SUFFIXES or role not in ("", "hr", "lr"):
        entry.others.append(extension)
    elif (role or "hr") in entry.images:
        entry.repeated = True
    else:
        entry.images[role or "hr"] = (member.offset_data, member.size)


def _index_of(path: Path, file: int) -> TarIndex:
    """`read_index`, once for each file (by its inode) that stands at a path."""
    return read_index(path)


class ShardSource(Source):
    """The samples of a list of shards.

    Args:
        urls: local paths, `http(s)://`, what fsspec opens (`s3://`, `gs://`, `hf://`), or `pipe:COMMAND`.
        name: the set's name, the first part of every key.
        counts: samples in each shard, if known; otherwise the headers of all shards are read first.
        cache: folder for remote shards; by default `cache_folder() / "shards"`.
        timeout: seconds without a byte after which a remote read has failed.
        digests: sha256 of each shard, if known; a downloaded shard is checked against it.
        sizes: bytes of each shard, if known; `damage` names local ones of another size.

    Raises:
        FileNotFoundError: a local shard is missing.
        OSError: a remote shard, whose count is not known, cannot be fetched.
    """

    def __init__(
        self,
        urls: Sequence[str],
        name: str,
        counts: Sequence[int] | None = None,
        cache: Path | None = None,
        timeout: float = 30.0,
        digests: Sequence[str | None] | None = None,
        sizes: Sequence[int | None] | None = None,
    ) -> None:
        self.urls, self.name = list(urls), name
        self.digests = digests or [None] * len(self.urls)
        self.sizes = sizes or [None] * len(self.urls)
        self.cache, self.timeout = cache or cache_folder() / "shards", timeout

        missing = [url for url in self.urls if not is_remote(url) and not Path(url).is_file()]
        if missing or not self.urls:
            what = f"{missing[0]} ({len(missing)} of {len(self.urls)} are missing)" if missing else "no shard is given"
            raise FileNotFoundError(f"{name}: {what}")

        self._index: Callable[[Path, int], TarIndex] = lru_cache(maxsize=256)(_index_of)
        self._counted = counts is not None
        keys = [] if counts else list(self._keys())
        self._counts = list(counts or map(len, keys))
        if sum(self._counts) > _KEPT:
            self._index = self._cached_index()
        self._first_shard = repeated_keys(keys)
        self._starts = [0, *accumulate(self._counts)]
        for text in [] if counts else self.damage():
            _log.warning("%s; without it, the set holds %d samples", text, len(self))

    def __getstate__(self) -> dict[str, object]:
        # a cache of a bound method cannot be pickled
        return {key: value for key, value in self.__dict__.items() if key != "_index"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._index = self._cached_index()

    def _cached_index(self) -> Callable[[Path, int], TarIndex]:
        """Reads headers of shards; those of so many shards are kept that they list about `_KEPT` samples."""
        each = sum(self._counts) // len(self._counts)
        return lru_cache(maxsize=max(16, _KEPT // max(each, 1)))(_index_of)

    @property
    def groups(self) -> list[int]:
        """Samples per shard."""
        return self._counts

    def describe(self, index: int) -> str:
        """The shard and the number within it."""
        shard, number = self._locate(index)
        return f"{self.urls[shard]} sample {number}"

    def index(self, shard: int) -> TarIndex:
        """The samples of one shard, by its headers, which are read once."""
        with self.local(shard) as path:
            return self._index(path, path.stat().st_ino)

    def record(self, index: int) -> Record:
        """Reads the image bytes of one sample.

        Raises:
            BadSample: the shard is missing or truncated, or the sample has no HR image or two.
            DataError: the shard's server does not answer.
        """
        shard, number = self._locate(index)
        try:
            with self.local(shard) as path:
                tar = self._index(path, path.stat().st_ino)
                if number >= len(tar.entries):
                    damage = tar.damage or "the shard holds fewer samples"
                    raise BadSample(f"{self.describe(index)} is missing: {damage}")
                entry = tar.entries[number]
                self._check(entry, shard)
                return self._read(path, entry)
        except Unreachable as error:  # which says nothing of the sample: a resumed run would find it good
            raise DataError(f"{self.describe(index)}: {error}") from error
        except OSError as error:
            raise BadSample(f"{self.describe(index)}: {error}") from error

    def local(self, shard: int) -> AbstractContextManager[Path]:
        """A context in which a shard is on this machine, with its path; a remote one is fetched first.

        Raises:
            OSError: it cannot be fetched.
        """
        url = self.urls[shard]
        if is_remote(url):
            return fetched(url, self.cache, self.timeout, self.digests[shard])
        return nullcontext(Path(url))

    def duplicates(self) -> list[str]:
        """Keys that occur in more than one shard; reads the headers of all shards."""
        return [f"{self.name}/{key}" for key in repeated_keys(self._keys())]

    def damage(self) -> list[str]:
        """The shards that are damaged; reads the headers of all shards that are on this machine."""
        found = []
        for shard, url in enumerate(self.urls):
            if is_remote(url) and self._counted:
                continue  # it is checked when it is fetched
            tar = self.index(shard)
            held, counted = len(tar.entries), self._counts[shard]
            wrong = ""
            if tar.damage or held != counted:
                wrong = f"holds {held} of {counted} samples{tar.damage and ', '}{tar.damage}"
            elif not is_remote(url) and self.sizes[shard] not in (None, size := tar.path.stat().st_size):
                wrong = f"is {size} bytes, not {self.sizes[shard]} as it was packed"
            if wrong:
                found.append(f"{url}: {wrong}: copy, fetch or pack it again")
        return found

    def _keys(self) -> Iterator[list[str]]:
        for shard in range(len(self.urls)):
            yield [entry.key for entry in self.index(shard).entries]

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _check(self, entry: Entry, shard: int) -> None:
        where = f"{self.urls[shard]} {entry.key}"
        if entry.repeated:
            raise BadSample(f"{where}: holds the same image member twice (duplicate key)")
        if self._first_shard.get(entry.key, shard) != shard:
            other = self.urls[self._first_shard[entry.key]]
            raise BadSample(f"{where}: {other} has this key too (duplicate key)")
        if "hr" not in entry.images:
            held = ", ".join([*entry.images, *entry.others])
            raise BadSample(f"{where}: no HR image; it should be named {entry.key}.hr.png (found {held})")

    def _read(self, path: Path, entry: Entry) -> Record:
        images = {}
        with path.open("rb") as file:
            for role, (offset, size) in entry.images.items():
                file.seek(offset)
                images[role] = file.read(size)
                if len(images[role]) < size:
                    raise BadSample(f"{path} {entry.key}: truncated, {len(images[role])} of {size} bytes")
        return Record(f"{self.name}/{entry.key}", images["hr"], images.get("lr"))


def repeated_keys(groups: Iterable[Sequence[str]]) -> dict[str, int]:
    """Keys that occur in more than one group, and the first group of each."""
    first: dict[str, int] = {}
    return {
        key: first[key] for group, keys in enumerate(groups) for key in keys if first.setdefault(key, group) != group
    }


def expand_braces(pattern: str) -> list[str]:
    """The shards that a pattern such as "x-{000000..000015}.tar" names; a file of that very name is meant itself."""
    return [pattern] if Path(pattern).is_file() else list(expand_urls(pattern))


def open_split(root: str, wanted: str) -> ShardSource:
    """The shards of one split, such as "div2k-train", as the `dataset.json` below a folder or URL lists them.

    Args:
        root: local folder, or a URL that `/dataset.json` can be added to.
        wanted: `{name}-{split}`; keys begin with the name.

    Raises:
        FileNotFoundError: `root` has no `dataset.json`, or it lists no such split, or a shard is missing.
    """
    listed = list_splits(root)
    if wanted not in listed:
        raise FileNotFoundError(f"{root}: holds no set {wanted!r} (it holds {', '.join(listed) or 'no set'})")
    shards = listed[wanted]
    urls, counts = [f"{root}/{shard['file']}" for shard in shards], [shard["samples"] for shard in shards]
    digests, sizes = [shard.get("sha256") for shard in shards], [shard.get("bytes") for shard in shards]
    return ShardSource(urls, wanted.rpartition("-")[0], counts, digests=digests, sizes=sizes)


def list_splits(root: str) -> dict[str, list[dict[str, Any]]]:
    """The shards that the `dataset.json` below a folder or URL lists for each split, by "{name}-{split}".

    Raises:
        FileNotFoundError: it does not exist, or does not describe packed sets.
    """
    url = f"{root}/dataset.json"
    try:
        content = read(url, timeout=30.0) if is_remote(url) else Path(url).read_bytes()
        splits = json.loads(content)["splits"]
        listed = {f"{split['name']}-{split['split']}": split["shards"] for split in splits}
        for shard in (shard for shards in listed.values() for shard in shards):
            _check_description(shard)
    except OSError as error:
        raise FileNotFoundError(f"{url}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileNotFoundError(f"{url}: is not the description of a packed set ({error!r}); pack it again") from error
    return listed


def _check_description(shard: Mapping[str, Any]) -> None:
    """Refuses what no packer writes of a shard.

    Raises:
        KeyError: its file or its number of samples is missing.
        ValueError: its file is not below the set's folder, or its number of samples is no count.
    """
    file, samples = shard["file"], shard["samples"]
    if not isinstance(file, str) or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise ValueError(f"{file}: a shard must be below the set's folder")
    if type(samples) is not int or samples < 0:
        raise ValueError(f"{file}: its number of samples is {samples!r}")
