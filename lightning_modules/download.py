"""Downloading one file: resumed, whole or absent, checked.

HTTP is read by Python itself, `pipe:COMMAND` by webdataset, every other scheme (`s3://`, `gs://`, `hf://`) by fsspec.
"""

import errno
import hashlib
import urllib.error
import urllib.request
from contextlib import closing
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import IO, NamedTuple

from rich.progress import track

_BLOCK = 1 << 20  # bytes


class WrongContent(OSError):
    """What a server sent is not the file that is looked for."""


class NoSuchScheme(OSError):
    """The address is of a kind that cannot be opened here."""


def download(url: str, target: Path, timeout: float, digest: str | None = None, *, shown: bool = False) -> Path:
    """Writes what a URL holds to `target`, which appears when it is complete; with a progress bar if `shown`.

    A connection that breaks is opened again and goes on at the byte where it broke, as long as each attempt brings
    some. What was received stays in `<target>.part`. A later call goes on from there if `digest` is given, by which
    parts of two versions of a file would be noticed.

    Args:
        url: HTTP, `pipe:COMMAND`, or what fsspec opens.
        target: The file to write, in a folder that exists.
        timeout: Seconds without a byte after which an attempt has failed; of HTTP, others have their own.
        digest: The sha256 or its beginning; a file of another is not kept.
        shown: Draw a progress bar.

    Raises:
        OSError: there is no connection, no answer within `timeout` seconds, fewer bytes than announced, or no room.
        WrongContent: the sha256 is another.
    """
    part = target.with_name(target.name + ".part")
    if digest is None:
        part.unlink(missing_ok=True)
    received = -1
    while True:
        try:
            _receive(url, part, timeout, shown)
            break
        except Exception as error:  # of HTTP, or of whatever library reads the scheme
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                part.unlink(missing_ok=True)
                raise OSError(
                    error.errno, f"{target}: there is no room for it on the disk; make room or name another folder"
                ) from error
            now = part.stat().st_size if part.is_file() else 0
            final = isinstance(error, urllib.error.HTTPError | NoSuchScheme | FileNotFoundError | PermissionError)
            if now <= received or now == 0 or final:
                raise error if isinstance(error, OSError) else OSError(f"{url}: {error!r}") from error
            received = now

    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if digest is not None and not found.startswith(digest):
        part.unlink()
        raise WrongContent(f"{url}: its sha256 is {found}, not {digest}")
    part.replace(target)
    return target


def _receive(url: str, part: Path, timeout: float, shown: bool) -> None:
    """Appends to `part` what it lacks of the file; begins anew where the server cannot send only a part."""
    have = part.stat().st_size if part.is_file() else 0
    try:
        stream = _open(url, timeout, have)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # there is nothing beyond what is here: it is complete, or another file's
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            part.unlink()
            return _receive(url, part, timeout, shown)
        raise

    with closing(stream.file), part.open("ab" if stream.start else "wb") as file:
        blocks = iter(partial(stream.file.read, _BLOCK), b"")
        total = None if stream.end is None else (stream.end - stream.start) // _BLOCK or None
        for block in track(blocks, part.stem, total, disable=not shown):
            file.write(block)
        if stream.end is not None and file.tell() != stream.end:
            raise OSError(f"{url}: the connection closed after {file.tell()} of {stream.end} bytes")


class _Stream(NamedTuple):
    """What is received: a file from byte `start` on, up to `end` if that is announced."""

    file: IO[bytes]
    start: int
    end: int | None


def _open(url: str, timeout: float, have: int) -> _Stream:
    """The rest of a file of which `have` bytes are here, or all of it where the server cannot send a part."""
    if url.startswith(("http://", "https://")):
        headers = {"Range": f"bytes={have}-"} if have else {}
        response: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
        start, length = have if response.status == 206 else 0, response.headers["Content-Length"]
        return _Stream(response, start, None if length is None else start + int(length))
    if url.startswith("pipe:"):
        from webdataset.gopen import gopen

        return _Stream(gopen(url, "rb"), 0, None)
    return _opened_by_fsspec(url, have)


def _opened_by_fsspec(url: str, have: int) -> _Stream:
    from fsspec.core import split_protocol, url_to_fs
    from fsspec.registry import known_implementations

    scheme, _ = split_protocol(url)
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        package = known_implementations[scheme]["class"].partition(".")[0]
        if package == "fsspec":  # its own class, which needs something else
            raise NoSuchScheme(f"{scheme}:// cannot be read: {error}") from error
        raise NoSuchScheme(
            f"{scheme}:// needs the package {package}, which is not installed: pip install {package}"
        ) from error
    except ValueError as error:
        raise NoSuchScheme(
            f"{error}; fsspec reads s3://, gs://, hf:// and others, and pipe:COMMAND what COMMAND writes to its output"
        ) from error

    system.invalidate_cache()  # of what it once listed
    size = system.size(path)
    stream: IO[bytes] = system.open(path, "rb")
    start = have if size is not None and have < size else 0
    stream.seek(start)
    return _Stream(stream, start, size)
