"""Files that appear complete or not at all, however a program ends."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".part"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to; the finished file replaces `path` when the block ends.

    It lies in the same folder, so that the replacement is one operation of the file system, and its bytes are on the
    disk before. No two writers have the same name, so that two processes may write one file. An error in the block
    removes it; after a kill `remove_unfinished` does.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise OSError(
                f"{path}: cannot be written ({error.strerror or error}); make room or name another"
            ) from error
        raise


def _sync(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Removes what a program left below `folder` that was killed while it wrote."""
    for part in folder.rglob(f"*{SUFFIX}"):
        part.unlink(missing_ok=True)
