"""`lightning import`: published weights become a checkpoint of ours, or an autoencoder's folder."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast

from torch import Tensor

from lightning_modules.checkpoint import CheckpointError, own_state, published_state, write_checkpoint, write_export
from lightning_modules.config import configured_model
from lightning_modules.published.autoencoder import convert
from lightning_modules.super_resolver import SuperResolver

METHODS = "lightning_modules"
ADAPTERS = "lightning_modules.published"

Adapter = Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]


def import_weights(model: SuperResolver, path: str | Path) -> None:
    """Loads published weights into `model`; every tensor is used once and none is left at its initial value.

    Raises:
        CheckpointError: there is no adapter for the method, or the file does not fit the model's configuration; the
            first differing keys are named.
    """
    state = published_state(path)
    try:
        model.load_state_dict(adapter_of(type(model))(model, state))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def import_file(file: str | Path, config: str | Path, folder: str | Path) -> None:
    """Makes an exported method of a published file, see `import_weights`: what an entry of `configs/weights` names."""
    model, resolved = configured_model(config)
    import_weights(model, file)
    write_export(own_state(model), resolved, Path(folder))


def import_autoencoder(file: str | Path, config: None, folder: str | Path) -> None:
    """Makes a folder for diffusers of ResShift's autoencoder, see `convert`; it needs no config."""
    convert(file, folder)


def adapter_of(method: type[SuperResolver]) -> Adapter:
    """The function `adapt` for a method's published weights.

    It is found by name: a method in `lightning_modules.sr3` has its adapter in `lightning_modules.published.sr3`. A
    method without one takes that of the class it is derived from.

    Raises:
        ValueError: neither the method nor a class that it is derived from has an adapter.
    """
    for ancestor in method.__mro__:
        package, _, name = ancestor.__module__.rpartition(".")
        if package == METHODS and find_spec(f"{ADAPTERS}.{name}") is not None:
            return cast(Adapter, import_module(f"{ADAPTERS}.{name}").adapt)

    modules = [module.name for module in iter_modules(import_module(ADAPTERS).__path__)]
    known = sorted(name for name in modules if find_spec(f"{METHODS}.{name}") is not None)
    raise ValueError(f"{method.__name__} has no published weights to import; these methods have: {', '.join(known)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """`lightning import FILE --config YAML --out CKPT`, or `lightning import FILE --autoencoder --out FOLDER`.

    Args:
        arguments: Everything after `lightning import`; None for those that the process was started with.

    Raises:
        CheckpointError: the file is unusable or does not fit the model.
        ConfigError: the config cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="lightning import", description="Converts weights that a paper published into a checkpoint."
    )
    parser.add_argument("file", help="the published .pth, .ckpt or .safetensors file")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--config", metavar="YAML", help="the experiment whose model the weights belong to")
    target.add_argument(
        "--autoencoder",
        action="store_true",
        help="the file is ResShift's autoencoder_vq_f4.pth, which becomes a folder for diffusers: the value of "
        "--model.init_args.space.init_args.autoencoder.init_args.weights",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="the checkpoint or folder to write")
    asked = parser.parse_args(arguments)

    if asked.autoencoder:
        convert(asked.file, asked.out)
        print(f"{asked.out}: config.json and diffusion_pytorch_model.safetensors")
        return

    model, config = configured_model(asked.config)
    import_weights(model, asked.file)
    write_checkpoint(model, config, asked.out)
    frozen = model.frozen_keys()  # the checkpoint leaves them out
    numbers = sum(value.numel() for key, value in model.state_dict().items() if key not in frozen)
    print(f"{asked.out}: {numbers:,} numbers of {type(model).__name__}")
