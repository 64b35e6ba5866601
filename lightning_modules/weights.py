"""Weights by name: one file `configs/weights/<name>.yaml` each, downloaded when they are asked for.

`resolve` is the one function that turns what a user typed (a name, a path, a hub id) into a file or folder.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any, cast

from filelock import FileLock

from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS, read_yaml
from lightning_modules.weight_files import WeightFile, WeightsError, cache_folder, digest, find, obtain, offline

_log = logging.getLogger(__name__)
ENTRIES = CONFIGS / "weights"
PACKAGED = Path(__file__).resolve().parent / "packaged"  # exports that travel inside the package
HUB = "hub:"
ENLARGER = "real-x4"  # what enlarges photographs where nothing is said
MODEL, DESCRIPTION = "model.safetensors", "config.yaml"  # an exported method, see `checkpoint.read_checkpoint`
_OF_A_FILE = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Entry:
    """What `configs/weights/<name>.yaml` says.

    Attributes:
        name: By which they are asked for.
        purpose: What they are for.
        licence: Of the weights.
        source: A page that describes them.
        files: Each file with its sha256; None where none is published.
        address: What the name of a file is appended to; None where there is none.
        hub: Hub id, instead of an address, of a model in the layout of transformers or diffusers; `files` are those
            whose sha256 is known.
        revision: Of the hub.
        only: Patterns of the hub's files that are needed; all by default.
        manual: How to get them by hand, where a program cannot.
        bytes: Size of all files together, as far as known.
        commercial: Whether the licence allows commercial use.
        packaged: Folder in `lightning_modules/packaged` instead of files.
        importer: Dotted path of the function `(file, config, folder)` that makes a folder of the file.
        config: The experiment that the importer needs, relative to `configs/`.
        also: Other names under which the first file is accepted.
        scores: Results, with the protocol.
    """

    name: str
    purpose: str
    licence: str
    source: str
    files: Mapping[str, str | None] = field(default_factory=dict)
    address: str | None = None
    hub: str | None = None
    revision: str | None = None
    only: tuple[str, ...] | None = None
    manual: str | None = None
    bytes: int | None = None
    commercial: bool = True
    packaged: str | None = None
    importer: str | None = None
    config: str | None = None
    also: tuple[str, ...] = ()
    scores: str | None = None

    def weight_files(self) -> list[WeightFile]:
        """The files; several of one name lie in a folder of that name."""
        names = {file: file if len(self.files) == 1 else f"{self.name}/{file}" for file in self.files}
        return [
            WeightFile(names[file], f"{self.address}/{file}" if self.address else None, sha256 or "", tuple(self.also))
            for file, sha256 in self.files.items()
        ]

    @property
    def is_method(self) -> bool:
        """Whether they are a whole method, which `--ckpt_path` takes."""
        return self.packaged is not None or self.config is not None

    def present(self) -> bool:
        """Whether nothing has to be downloaded."""
        if self.packaged is not None:
            return (PACKAGED / self.packaged / MODEL).is_file()
        if self.hub is not None:
            return _in_cache(self) is not None
        return all(find(file) is not None for file in self.weight_files())


def names() -> list[str]:
    """All names, sorted."""
    return sorted(path.stem for path in ENTRIES.glob("*.yaml"))


def is_name(text: str | Path) -> bool:
    """Whether weights of this name are known, here or for download."""
    return Path(text).name == str(text) and (ENTRIES / f"{text}.yaml").is_file()


def entry(name: str) -> Entry:
    """What is known of a name.

    Raises:
        WeightsError: there is no such name; the nearest are named.
        ConfigError: its file lacks something, or has a key that is unknown.
    """
    if not is_name(name):
        raise WeightsError(unknown(name))
    path = ENTRIES / f"{name}.yaml"
    content = read_yaml(path)
    known = [each.name for each in fields(Entry) if each.name != "name"]
    if wrong := sorted(set(content) - set(known)):
        raise ConfigError(f"{path}: the key '{wrong[0]}' is unknown; there are {', '.join(known)}")
    try:
        return Entry(name=name, **content)
    except TypeError as error:
        raise ConfigError(f"{path}: {str(error).partition(') ')[2]}") from error


def unknown(name: str) -> str:
    """What to say of a name that is unknown, with the nearest ones."""
    near = get_close_matches(name.lower(), {each.lower(): each for each in names()}, n=3, cutoff=0.4)
    nearest = [each for each in names() if each.lower() in near] or names()
    return (
        f"{name}: is neither a file nor the name of weights; the nearest names: {', '.join(nearest)} (all of them: "
        "lightning weights)"
    )


def resolve(name_or_path: str | Path, *, accept: bool = False) -> Path:
    """The file or folder that is meant by a name, a path or a hub id; what is not here is downloaded.

    Args:
        name_or_path: A file, the folder of an exported method, a name that `lightning weights` lists, or
            `hub:OWNER/NAME[@REVISION]`, an exported method on the hub.
        accept: The licence is known and accepted, also one that forbids commercial use.

    Returns:
        Of a method a checkpoint or the `model.safetensors` of its export, what `config.load_method` reads. Of other
        weights their file, or their folder if they are several files. A path that does not exist is returned as it
        is, for its reader to refuse.

    Raises:
        WeightsError: the name is unknown, a download failed or has another sha256, a folder holds no export, or the
            licence forbids commercial use and was not accepted.
    """
    text = str(name_or_path)
    if text.startswith(HUB):
        return exported(_from_hub(text.removeprefix(HUB)))

    path = Path(text).expanduser()
    if path.exists():
        if is_name(text):
            _log.warning("%s: the file or folder of this name is taken, not the weights of this name", text)
        return exported(path) if path.is_dir() else path
    if is_name(text):
        return _obtain(entry(text), accept)
    if path.suffix in _OF_A_FILE or path.name != text:
        return path
    raise WeightsError(unknown(text))


def lacking(name: str) -> str | None:
    """What to say of weights that are not here and cannot be downloaded; None where they are or can be."""
    wanted = entry(name)
    if wanted.present() or (not offline() and (wanted.address or wanted.hub)):
        return None
    named = ", ".join(wanted.files) or wanted.hub or wanted.packaged
    return f"{name}: {named} is not on this machine and cannot be downloaded"


def to_download(weights: str) -> str | None:
    """The name of weights that would be downloaded; None for a path, and for what is here or cannot be downloaded."""
    wanted = is_name(weights) and not entry(weights).present() and lacking(weights) is None
    return weights if wanted else None


def located(weights: str) -> str:
    """The folder or file of weights that are given by name; a path or a hub id stays as it is."""
    return str(resolve(weights)) if is_name(weights) and not Path(weights).exists() else weights


def exported(folder: Path) -> Path:
    """The weights in the folder of an exported method.

    Raises:
        WeightsError: it is no such folder.
    """
    for name in (MODEL, DESCRIPTION):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: is no exported method, it has no {name}; give a checkpoint's file")
    return folder / MODEL


def _obtain(wanted: Entry, accept: bool) -> Path:
    if wanted.packaged is not None:
        if not wanted.present():
            others = ", ".join(each for each in names() if each != wanted.name)
            raise WeightsError(
                f"{wanted.name}: belongs into the package, at {PACKAGED / wanted.packaged}, but is not there: this "
                f"installation is not complete. Other names: {others}"
            )
        return exported(PACKAGED / wanted.packaged)

    if not (wanted.commercial or accept or wanted.present()):
        raise WeightsError(
            f"{wanted.name}: may not be used commercially ({wanted.licence}; {wanted.source}). To accept that: "
            f"lightning weights get {wanted.name} --accept"
        )
    if wanted.hub is not None:
        return _whole(wanted)
    found = [
        obtain(file, needed_by=f"--ckpt_path {wanted.name}", instead="instead of the name", manual=wanted.manual)
        for file in wanted.weight_files()
    ]
    first = next(iter(wanted.files))
    source = found[0] if len(found) == 1 else found[0].parents[first.count("/")]
    return source if wanted.importer is None else _imported(wanted, source)


def _imported(wanted: Entry, source: Path) -> Path:
    """What the importer makes of a published file, once; it is named by the file's content."""
    folder = cache_folder() / f"{wanted.name}-{digest(source)[:12]}"
    with FileLock(_ready(folder.with_name(f"{folder.name}.lock"))):
        if not folder.is_dir():
            _log.warning("%s: being made of %s", folder, source)
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            try:
                config = None if wanted.config is None else CONFIGS / wanted.config
                cast(Any, locate(str(wanted.importer)))(source, config, part)
                part.replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder / MODEL if (folder / MODEL).is_file() else folder


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _in_cache(wanted: Entry) -> Path | None:
    """The folder of a hub's model, where it is on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(str(wanted.hub), revision=wanted.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if all((folder / file).is_file() for file in wanted.files) else None


def _whole(wanted: Entry) -> Path:
    """The folder of a hub's model, whose files have the sha256 that they are known to have.

    Raises:
        WeightsError: it cannot be downloaded, or is another.
    """
    folder = _in_cache(wanted) or _snapshot(str(wanted.hub), wanted.revision, wanted.only)
    for file, sha256 in wanted.files.items():
        found = digest(folder / file)
        if found != sha256:
            (folder / file).resolve().unlink()
            (folder / file).unlink(missing_ok=True)
            raise WeightsError(f"{folder / file}: its sha256 is {found}, not {sha256}; it is removed, get it again")
    return folder


def _from_hub(identity: str) -> Path:
    """The folder of an exported method on the hub, in the hub's cache."""
    name, _, revision = identity.partition("@")
    return _snapshot(name, revision or None, (MODEL, DESCRIPTION, "*.md", "pairs/*"))


def _snapshot(name: str, revision: str | None, only: Sequence[str] | None = None) -> Path:
    """Files of a repository on the hub, downloaded to the hub's cache.

    Raises:
        WeightsError: they cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise WeightsError(f"{name}: needs the extra: pip install 'diffsr[huggingface_hub]'") from error

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=None if only is None else list(only)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{name}: cannot be had from the hub ({reason}); bring the folder from a machine with a network (hf "
            "download ID --local-dir FOLDER) and give it instead"
        ) from error
