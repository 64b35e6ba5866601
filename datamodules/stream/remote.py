"""Files behind URLs: downloaded to this machine once, completely, and checked; kept while the cache has room."""

import fcntl
import hashlib
import logging
import os
import tempfile
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from filelock import FileLock

from lightning_modules.download import NoSuchScheme, WrongContent, download

_log = logging.getLogger(__name__)
CACHE_SIZE = "DIFFSR_CACHE_SIZE"  # GB of remote shards that are kept; 100 by default
PATIENCE = "DIFFSR_PATIENCE"  # seconds for which a server that does not answer is asked again; 600 by default
_AT_START = 30.0  # seconds at most, for what is read before training: a mistyped address is to be seen soon
_LONGEST_PAUSE = 30.0  # seconds between two attempts
_WRONG = 3  # how often a file may come with another sha256


class Unreachable(OSError):
    """A server did not answer for as long as it was asked; nothing is known of its files."""


def cache_folder() -> Path:
    """Where bundled data sets and remote shards are kept: `$DIFFSR_CACHE`, else `diffsr` in the XDG cache folder."""
    if "DIFFSR_CACHE" in os.environ:
        return Path(os.environ["DIFFSR_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "diffsr"


def is_remote(url: str) -> bool:
    """Whether a file has to be fetched before it can be read."""
    return "://" in url or url.startswith("pipe:")


@contextmanager
def fetched(url: str, cache: Path, timeout: float, digest: str | None = None) -> Iterator[Path]:
    """The path of a remote file in `cache`, downloaded once for all processes of this machine.

    No process removes the file while the context is open.

    Args:
        url: where it is.
        cache: folder for it.
        timeout: seconds without a byte after which an attempt has failed; of HTTP, other libraries have their own.
        digest: its sha256, which is checked. The cached file is named by it, so that a set which was packed again
            behind the same URL is downloaded again.

    Raises:
        Unreachable: the server did not answer for `$DIFFSR_PATIENCE` seconds.
        OSError: there is no such file (HTTP 4xx) or no right to read it, one of another sha256, or no package for
            such addresses.
    """
    name = urlsplit(url).path.rpartition("/")[2][-80:]
    target = cache / f"{hashlib.sha256((digest or url).encode()).hexdigest()[:16]}-{name}"
    limit = cache_size()
    cache.mkdir(parents=True, exist_ok=True)

    new = False
    while (file := _in_use(target)) is None:
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _download_in_attempts(url, target, timeout, patience(), digest)
                new = True

    with file:
        os.utime(target)  # the time of its last use
        if new:
            make_room(cache, limit)
        yield target


def _in_use(path: Path) -> IO[bytes] | None:
    """The opened file, which `make_room` leaves alone until it is closed; None where it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if _is_open(file, path):
        return file
    file.close()
    return None


def _is_open(file: IO[bytes], path: Path) -> bool:
    """Whether a file that was opened still stands at its path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def make_room(cache: Path, limit: float) -> None:
    """Removes files of `cache`, those used longest ago first, until it holds at most `limit` bytes.

    Files that a process has in use (see `fetched`) stay, so that more may be left.
    """
    with FileLock(cache / "room.lock"):
        files = [(path, path.stat()) for path in cache.iterdir() if path.suffix not in (".lock", ".part")]
        held = sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda each: each[1].st_mtime):
            if held <= limit:
                return
            if _removed(path):
                held -= status.st_size
                _say_full(cache, limit)


def _removed(path: Path) -> bool:
    """Removes a file that no process has in use; whether it had to go."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


@cache
def _say_full(cache: Path, limit: float) -> None:
    _log.warning(
        "%s is full: the shards used longest ago are removed, and downloaded again when they are needed; %s=%g sets "
        "another limit than these GB",
        cache,
        CACHE_SIZE,
        limit / 1e9,
    )


def cache_size() -> float:
    """Bytes of remote shards that are kept on this machine.

    Raises:
        ValueError: `$DIFFSR_CACHE_SIZE` is no number.
    """
    return 1e9 * _number(CACHE_SIZE, "100", "GB")


def patience() -> float:
    """Seconds for which a server that does not answer is asked again.

    Raises:
        ValueError: `$DIFFSR_PATIENCE` is no number.
    """
    return _number(PATIENCE, "600", "seconds")


def _number(variable: str, default: str, unit: str) -> float:
    typed = os.environ.get(variable, default)
    try:
        return float(typed)
    except ValueError:
        raise ValueError(f"{variable}: must be a number of {unit}, got {typed}") from None


def read(url: str, timeout: float) -> bytes:
    """The current content behind a URL, not cached; for small files that may change.

    Raises:
        OSError: see `fetched`.
    """
    with tempfile.TemporaryDirectory(prefix="diffsr-") as folder:
        return _download_in_attempts(url, Path(folder) / "content", timeout, min(patience(), _AT_START)).read_bytes()


def _download_in_attempts(url: str, target: Path, timeout: float, patience: float, digest: str | None = None) -> Path:
    began, wrong = time.monotonic(), 0
    for attempt in count(1):
        try:
            return download(url, target, timeout, digest)
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
                raise
            wrong += isinstance(error, WrongContent)
            if wrong == _WRONG or isinstance(error, NoSuchScheme | FileNotFoundError | PermissionError):
                raise
            pause, waited = min(2.0 ** (attempt - 1), _LONGEST_PAUSE), time.monotonic() - began
            if waited + pause > patience:
                raise Unreachable(
                    f"{url}: not fetched in {attempt} attempts and {waited:.0f} s: {error}; go on when the server is "
                    f"back, or let it be asked for longer than {PATIENCE}={patience:g} seconds"
                ) from error
            _log.warning("%s: attempt %d failed (%s); the next is in %g s", url, attempt, error, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")
