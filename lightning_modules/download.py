"""Downloading one file: resumed, whole or absent, checked."""

import errno
import hashlib
import urllib.error
import urllib.request
from contextlib import closing
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from rich.progress import track

_BLOCK = 1 << 20  # bytes


class WrongContent(OSError):
    """What a server sent is not the file that is looked for."""


class NoSuchScheme(OSError):
    """The address is of a kind that cannot be opened."""


def download(url: str, target: Path, timeout: float, digest: str | None = None, *, shown: bool = False) -> Path:
    """Writes what a URL holds to `target`, which appears when it is complete; with a progress bar if `shown`.

    A connection that breaks is opened again and goes on at the byte where it broke, as long as each attempt brings
    some. What was received stays in `<target>.part`. A later call goes on from there if `digest` is given, by which
    parts of two versions of a file would be noticed.

    Args:
        url: HTTP, or what webdataset opens, such as `pipe:COMMAND`.
        target: The file to write, in a folder that exists.
        timeout: Seconds without a byte after which an attempt has failed.
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
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                part.unlink(missing_ok=True)
                raise OSError(
                    error.errno, f"{target}: there is no room for it on the disk; make room or name another folder"
                ) from error
            now = part.stat().st_size if part.is_file() else 0
            if now <= received or now == 0 or isinstance(error, urllib.error.HTTPError | NoSuchScheme):
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

    with closing(stream):
        length = stream.headers["Content-Length"] if isinstance(stream, HTTPResponse) else None
        resumed = isinstance(stream, HTTPResponse) and stream.status == 206
        announced = None if length is None else int(length) + (have if resumed else 0)
        with part.open("ab" if resumed else "wb") as file:
            blocks = iter(partial(stream.read, _BLOCK), b"")
            total = (int(length) // _BLOCK or None) if length else None
            for block in track(blocks, part.stem, total, disable=not shown):
                file.write(block)
            if announced is not None and file.tell() != announced:
                raise OSError(f"{url}: the connection closed after {file.tell()} of {announced} bytes")


def _open(url: str, timeout: float, start: int) -> IO[bytes]:
    if url.startswith(("http://", "https://")):
        headers = {"Range": f"bytes={start}-"} if start else {}
        response: IO[bytes] = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
        return response

    from webdataset.gopen import gopen

    try:
        stream: IO[bytes] = gopen(url, "rb")
    except ValueError as error:  # webdataset knows no such scheme, s3:// for one
        raise NoSuchScheme(f"{error}; give pipe:COMMAND, where COMMAND writes the file to its output") from error
    return stream
