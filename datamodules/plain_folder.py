"""Test sets as plain folders of images, the way they are distributed, in the place of shards."""

from pathlib import Path

from datamodules.images import find_images
from datamodules.stream.pairs import pair_files
from datamodules.stream.sources import FileSource

HR = ("test_HR", "HR", "hr", "gt", "GT", "hr_*")
LR = ("test_LR", "LR", "lr", "lq", "LQ", "lr_*")
LAYOUTS = "plain folders: test_HR and test_LR, HR and LR, hr and lr, gt and lq, or hr_128 and lr_16"


def plain_folder(root: Path, *, paired: bool) -> FileSource | None:
    """The images of a folder that holds no shards: pairs in two folders, or, where none are needed, all its images.

    Args:
        root: The folder.
        paired: Whether LR files are needed.

    Returns:
        None where the folder holds nothing of the kind.

    Raises:
        DataError: an image has no partner.
    """
    hr = _first(root, HR)
    if paired:
        lr = _first(root, LR)
        if hr is None or lr is None:
            return None
        pairs = pair_files(find_images(hr), find_images(lr))
        return FileSource(root.name, hr, [high for high, _ in pairs], [low for _, low in pairs])

    folder = hr or (root if root.is_dir() else None)
    try:
        return None if folder is None else FileSource(root.name, folder, find_images(folder))
    except FileNotFoundError:
        return None


def _first(root: Path, patterns: tuple[str, ...]) -> Path | None:
    found = (path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_dir())
    return next(found, None)
