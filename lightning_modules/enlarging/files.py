"""Which files a command line means, and where their results go."""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.folder import keyed
from datamodules.images import find_images
from datamodules.photograph import FORMATS, OF_SUFFIX

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A photograph to enlarge.

    Attributes:
        key: Its name, on which the noise depends.
        source: Its file.
        target: The file of the result.
    """

    key: str
    source: Path
    target: Path


def find(typed: Sequence[str]) -> tuple[dict[Path, list[Path]], dict[str, str]]:
    """The image files of each file, folder or shell pattern that was typed; and why others hold none, by name.

    A pattern is also followed where the shell has left it, as it does in quotes. A file or folder of exactly that name
    comes first.
    """
    found: dict[Path, list[Path]] = {}
    failures: dict[str, str] = {}
    for text in typed:
        path = Path(text).expanduser()
        matches = [path]
        if not path.exists() and glob.has_magic(text):
            matches = [Path(match) for match in sorted(glob.glob(os.path.expanduser(text), recursive=True))]
            if not matches:
                failures[text] = f"{text}: no file matches this pattern"
        for match in matches:
            try:
                found[match] = find_images(match)
            except FileNotFoundError as error:
                failures[str(match)] = str(error)
    return found, failures


def jobs_of(found: Mapping[Path, Sequence[Path]], output: str, form: str | None) -> tuple[list[Job], str]:
    """The photographs with the files of their results, and the format of these.

    Args:
        found: Image files by what was typed.
        output: A file, by the suffix of an image, or else a folder.
        form: One of `FORMATS`; None: that of the file's suffix, or png.

    Raises:
        ValueError: several photographs would go to one file, or format and suffix disagree.
    """
    named = keyed(found)
    path = Path(output).expanduser()
    is_folder = output.endswith(("/", os.sep)) or path.is_dir() or path.suffix.lower() not in OF_SUFFIX
    if is_folder:
        form = form or "png"
        suffix = FORMATS[form].suffix
        return [Job(key, source, path / f"{key}{suffix}") for key, source in named], form

    said = OF_SUFFIX[path.suffix.lower()]
    if form not in (None, said):
        raise ValueError(f"--format {form}: the output is called {path.name}, which says {said}; give one of them")
    if len(named) > 1:
        raise ValueError(
            f"--output {output}: is one file, but there are {len(named)} photographs; give a folder, such as "
            f"--output {path.stem}/"
        )
    return [Job(key, source, path) for key, source in named], said
