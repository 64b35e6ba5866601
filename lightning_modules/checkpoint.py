"""Checkpoints as files: reading our own and published ones, writing, finding the newest of a run."""

import contextlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_modules.config_files import read_yaml
from lightning_modules.published.basicsr_names import rrdb
from lightning_modules.super_resolver import SuperResolver
from lightning_modules.weights import DESCRIPTION, HUB, MODEL, is_name, lacking, resolve
from lightning_modules.whole_file import whole_file


class CheckpointError(ValueError):
    """A file that cannot be used as what it was given for; the message names the file and the way out."""


@contextlib.contextmanager
def asking_for(what: str, option: str) -> Iterator[None]:
    """Inside, the error of a file that cannot be used also says what to give, and as which option."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give {what} as {option}") from error


def no_file(path: str, what: str, option: str) -> str | None:
    """What to do about a file that a part needs and that is not there; None where it is."""
    if path.startswith(HUB) or Path(path).exists():
        return None
    reason = lacking(path) if is_name(path) else f"{path}: no such checkpoint"
    return reason and f"{reason}; give {what} as {option}"


def read_checkpoint(path: str | Path, weights: bool = True) -> dict[str, Any]:
    """Reads a `.ckpt`, `.pth` or `.safetensors` file without executing anything stored in it.

    The `model.safetensors` of an exported method, beside which its `config.yaml` lies, is read as the checkpoint of a
    training run that has not begun.

    Args:
        path: The file, or what `weights.resolve` finds one by.
        weights: False leaves the tensors in the file, from which they are read when they are used: for one who only
            wants to know what the checkpoint says of itself. Checksums are then not compared.

    Raises:
        CheckpointError: the file is absent, damaged, or holds more than tensors and plain values.
        WeightsError: a name is unknown, or its weights cannot be had.
    """
    path = resolve(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
        described = is_export(path)
        return _described(tensors, path.with_name(DESCRIPTION)) if described else tensors

    zipped = zipfile.is_zipfile(path)  # older files are not, and can neither be mapped nor checked
    if weights and zipped:
        check(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and not weights)
    except Exception as error:  # whatever a damaged pickle makes of its values
        if zipped:
            check(path)
        raise _unreadable(path, error, zipped) from error

    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _unreadable(path: Path, error: Exception, zipped: bool) -> CheckpointError:
    """What to do about a file that is whole and yet no checkpoint."""
    with path.open("rb") as file:
        begin = file.read(32)
    if begin.startswith(b"version https://git-lfs"):
        return CheckpointError(
            f"{path}: is only the pointer to a large file; fetch the file itself with `git lfs pull`"
        )
    if isinstance(error, pickle.UnpicklingError) and (zipped or begin[:1] == b"\x80"):  # a pickle, new or old form
        return CheckpointError(
            f"{path}: holds Python objects beside tensors and plain values, and is not loaded because unpickling "
            "them could execute code. Where that can do no harm, in a container without network and without your "
            "files, the code that wrote it can export the weights: "
            "safetensors.torch.save_file(MODULE.state_dict(), 'weights.safetensors')"
        )
    if isinstance(error, pickle.UnpicklingError):
        return CheckpointError(f"{path}: is no checkpoint: it begins with {begin!r}; fetch the file again")
    return CheckpointError(f"{path}: is damaged or no checkpoint ({_first(error)}); fetch or train it again")


def check(path: Path) -> None:
    """Compares the checksums that a checkpoint holds of its parts; torch does not when it reads them.

    Raises:
        CheckpointError: it was not written to its end, or bytes of it have changed since.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is damaged or was not written to its end ({_first(error)})") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: is damaged: the checksum of its part {damaged} is another")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({_first(error)})") from error


def is_export(path: Path) -> bool:
    """Whether a file holds the weights of an exported method."""
    return path.name == MODEL and path.with_name(DESCRIPTION).is_file()


def _described(tensors: dict[str, Tensor], description: Path) -> dict[str, Any]:
    """The checkpoint that an export is; half precision is what it is stored in, not what it computes in."""
    config = read_yaml(description)
    if not isinstance(config.get("model"), dict) or "class_path" not in config["model"]:
        raise CheckpointError(f"{description}: describes no model")
    state = {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}
    return {**_content(state, config), "optimizer_states": [], "lr_schedulers": []}


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def model_config(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """`{"class_path": ..., "init_args": ...}` of the method that a checkpoint of ours holds.

    Raises:
        CheckpointError: the file is no checkpoint of this project.
    """
    stored = checkpoint.get("hyper_parameters", {})
    hparams = dict(stored) if isinstance(stored, Mapping) else {}
    class_path = hparams.pop("_class_path", None)
    if class_path is None or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise CheckpointError(
            f"{path}: was not written by a training run of this project; weights that a paper published are converted "
            "first: lightning import --help"
        )
    return {"class_path": class_path, "init_args": _without_private(hparams)}


def data_config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the data module that a checkpoint was trained with; empty where it stores none."""
    return _without_private(checkpoint.get("datamodule_hyper_parameters", {}))


def _without_private(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if not key.startswith("_")}


def published_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a published file, out of the nestings that are in use (`state_dict`, `model`, `params_ema`).

    Raises:
        CheckpointError: there is no dictionary of tensors in the file.
    """
    content: Any = read_checkpoint(path)
    for key in ("state_dict", "model", "params_ema", "params"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path}: holds no state dict; found the entries {', '.join(map(str, list(content)[:8]))}"
        )
    return dict(content)


def load_network(network: nn.Module, path: str | Path) -> None:
    """Loads a pretrained part: the `network` of one of our checkpoints, or the bare state dict of a published one.

    Raises:
        CheckpointError: the file is unusable or its tensors do not fit.
    """
    content = read_checkpoint(path)
    ours = "_class_path" in content.get("hyper_parameters", {})
    state = rename_prefixes(content["state_dict"], {"network.": ""}) if ours else rrdb(published_state(path))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: does not fit {type(network).__name__} as configured: {first_mismatches(error)}"
        ) from error


def first_mismatches(error: RuntimeError) -> str:
    """The beginning of what `load_state_dict` found wrong, which may be hundreds of keys."""
    return "; ".join(shorten(line, 160, placeholder=" ...") for line in str(error).splitlines()[1:3])


def rename_prefixes(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` with the first matching prefix of each key replaced; keys that match none keep their name."""
    renamed = {}
    for key, value in state.items():
        old = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + key.removeprefix(old)] = value
    return renamed


def write_checkpoint(model: SuperResolver, config: Mapping[str, Any], path: str | Path) -> None:
    """A checkpoint of weights alone, from which `load_method` and `lightning predict` rebuild the model.

    Args:
        model: The method.
        config: `{"model": {"class_path", "init_args"}, "data": ...}` as `config.configured_model` gives it.
        path: Where to write.
    """
    save(_content(own_state(model), config), Path(path))


def own_state(model: SuperResolver) -> dict[str, Tensor]:
    """The weights that a checkpoint holds: all but those of frozen parts with a source of their own."""
    frozen = model.frozen_keys()
    return {key: value for key, value in model.state_dict().items() if key not in frozen}


def _content(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data") or {}
    return {
        "pytorch-lightning_version": lightning.__version__,  # what Lightning asks any file that it is given
        "state_dict": dict(state),
        "hyper_parameters": {"_class_path": config["model"]["class_path"], **config["model"].get("init_args", {})},
        "datamodule_hyper_parameters": {"_class_path": data.get("class_path"), **data.get("init_args", {})},
    }


def write_export(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, *, half: bool = False) -> None:
    """The folder of an exported method: `model.safetensors` and `config.yaml`, which `read_checkpoint` reads.

    Args:
        state: Its weights.
        config: `{"model": {"class_path", "init_args"}, "data": ...}`.
        folder: Where to write.
        half: Store floating-point weights in half precision; whole numbers stay as they are.

    Raises:
        CheckpointError: a weight is too large for half precision.
        OSError: a file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    stored = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    if half:
        stored = {key: value.half() if value.is_floating_point() else value for key, value in stored.items()}
        lost = [key for key, value in stored.items() if value.is_floating_point() and not value.isfinite().all()]
        if lost:
            raise CheckpointError(f"{lost[0]}: is too large for half precision; export without --half")

    with whole_file(folder / MODEL) as part:
        part.write_bytes(to_bytes(stored, metadata={"format": "pt"}))  # `save_file` hides files from other users
    with whole_file(folder / DESCRIPTION) as part:
        part.write_text(yaml.safe_dump({key: config[key] for key in ("model", "data") if config.get(key)}))


def save(content: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint, which appears when it is complete.

    Raises:
        OSError: it cannot be written; the message names it, and a file that was there before is untouched.
    """
    with whole_file(path) as part, part.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer, when the disk is full
            raise OSError(_first(error)) from error


def newest(root: Path, kind: str) -> Path:
    """The newest run's last or best checkpoint.

    Args:
        root: Folder of an experiment, whose runs are its subfolders.
        kind: "last" for the newest checkpoint that can be read, "best" for the one that the newest run's monitored
            metric prefers.

    Raises:
        CheckpointError: there is none, or the run monitored nothing.
    """
    found = [path for pattern in ("checkpoints", "*/checkpoints") for path in root.glob(f"{pattern}/*.ckpt")]
    if not found:
        raise CheckpointError(f"{root}: no run there has a checkpoints/last.ckpt; name the experiment or a file")
    run = max(found, key=_written).parent.resolve()  # `last` is another name of one of them
    path = _best(run) if kind == "best" else newest_whole(run)
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def newest_whole(run: Path) -> Path:
    """The newest checkpoint of a folder that can be read; those that cannot are named.

    Raises:
        CheckpointError: there is none.
    """
    for path in sorted(run.glob("*.ckpt"), key=_written, reverse=True):
        try:
            check(path)
        except CheckpointError as error:
            rank_zero_warn(f"{error}; the checkpoint before it is taken")
        else:
            return path
    raise CheckpointError(f"{run}: holds no checkpoint that can be read; name a file, or begin a new run")


def _best(run: Path) -> Path:
    """The checkpoint that the newest file of a run's checkpoints names as the best."""
    for path in sorted(run.glob("*.ckpt"), key=_written, reverse=True):
        states = read_checkpoint(path, weights=False).get("callbacks", {}).values()
        best = {state["monitor"]: state["best_model_path"] for state in states if state.get("monitor")}
        if len(best) > 1:
            raise CheckpointError(f"{run}: the run monitored {' and '.join(best)}; name the file of the one you mean")
        for name in best.values():
            if not (run / Path(name).name).is_file():  # the name alone: the run's folder may have moved
                raise CheckpointError(
                    f"{run / Path(name).name}: is the best checkpoint of its run, but no longer there"
                )
            return run / Path(name).name

    raise CheckpointError(
        f"{run}: the run monitored no metric that would tell its best checkpoint; train with a ModelCheckpoint that "
        "has `monitor: val/psnr_y` and `mode: max`, or name a file"
    )


def _written(path: Path) -> tuple[float, bool]:
    """When a checkpoint was written; `last.ckpt` comes after another of the same moment."""
    return path.stat().st_mtime, path.stem == "last"
