"""Files behind URLs: downloaded to this machine once, completely, and checked."""

import hashlib
import logging
import os
import tempfile
import time
import urllib.error
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from lightning_modules.download import NoSuchScheme, WrongContent, download

_log = logging.getLogger(__name__)
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


def fetch(url: str, cache: Path, timeout: float, digest: str | None = None) -> Path:
    """Downloads a remote file into `cache`, once for all processes of this machine.

    Args:
        url: where it is.
        cache: folder for it.
        timeout: seconds without a byte after which an attempt has failed.
        digest: its sha256, which is checked. The cached file is named by it, so that a set which was packed again
            behind the same URL is downloaded again.

    Raises:
        Unreachable: the server did not answer for `$DIFFSR_PATIENCE` seconds.
        OSError: there is no such file (HTTP 4xx), or one of another sha256.
    """
    name = urlsplit(url).path.rpartition("/")[2][-80:]
    target = cache / f"{hashlib.sha256((digest or url).encode()).hexdigest()[:16]}-{name}"
    if target.exists():
        return target

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        return target if target.exists() else _download_in_attempts(url, target, timeout, patience(), digest)


def patience() -> float:
    """Seconds for which a server that does not answer is asked again.

    Raises:
        ValueError: `$DIFFSR_PATIENCE` is no number.
    """
    typed = os.environ.get(PATIENCE, "600")
    try:
        return float(typed)
    except ValueError:
        raise ValueError(f"{PATIENCE}: must be a number of seconds, got {typed}") from None


def read(url: str, timeout: float) -> bytes:
    """The current content behind a URL, not cached; for small files that may change.

    Raises:
        OSError: see `fetch`.
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
            if wrong == _WRONG or isinstance(error, NoSuchScheme):
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
