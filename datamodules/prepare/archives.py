"""Published archives of images: downloaded, checked and unpacked."""

import hashlib
import logging
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from datamodules.prepare.shard_writer import PackError
from lightning_modules.download import download

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A zip or tar with a folder of images.

    Attributes:
        url: official address.
        folder: the images, relative to where the archive is unpacked.
        images: how many there are.
        digest: "sha256:..." or "md5:..." of the archive; None where no checksum is published.
    """

    url: str
    folder: str
    images: int
    digest: str | None = None


def fetch_images(archive: Archive, raw: Path, timeout: float = 30.0) -> Path:
    """The folder of images below `raw`; if it does not exist, the archive is downloaded, checked and unpacked.

    Raises:
        PackError: the archive cannot be downloaded, or is damaged; the message says where to put the files by hand.
    """
    folder = raw / archive.folder
    if folder.is_dir():
        return folder

    raw.mkdir(parents=True, exist_ok=True)
    file = raw / archive.url.rpartition("/")[2]
    try:
        if not file.exists():
            _log.warning("%s does not exist; downloading %s", folder, archive.url)
            download(archive.url, file, timeout, shown=True)
        _check_digest(file, archive)
        _unpack(file, raw)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise PackError(
            f"{folder} does not exist, and {archive.url} could not be downloaded and unpacked ({error}): download it "
            f"elsewhere and put it at {file}, or unpack it so that the {archive.images} images are in {folder}"
        ) from error

    if not folder.is_dir():
        raise PackError(f"{file}: was unpacked, but holds no folder {archive.folder}")
    return folder


def _check_digest(file: Path, archive: Archive) -> None:
    if archive.digest is None:
        _log.warning("%s: no checksum is published for it, so it is not checked", file)
        return
    algorithm, _, expected = archive.digest.partition(":")
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, algorithm).hexdigest()
    if actual != expected:
        raise PackError(f"{file}: its {algorithm} is {actual}, not {expected}: delete it and download it again")


def _unpack(file: Path, raw: Path) -> None:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as content:
            content.extractall(raw)
    else:
        with tarfile.open(file) as content_tar:
            content_tar.extractall(raw, filter="data")
