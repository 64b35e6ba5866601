"""The command: `lightning fit|validate|test|predict`."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_modules.base import SuperResolver
from lightning_modules.checkpoint import CheckpointError, build, data_config, model_config, read_checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PARSER_MODE = "omegaconf+"  # resolves ${...} after all files are merged
TRACEBACK = "DIFFSR_TRACEBACK"

HELP = """lightning: diffusion super-resolution experiments

  train       lightning fit --config configs/quickstart.yaml      on photographs that are already here
              lightning fit --config configs/srdiff_yoda.yaml     the paper's recipe, on DIV2K
  enlarge     lightning predict --ckpt_path RUN/checkpoints/last.ckpt --input PHOTOS --output FOLDER
  score       lightning test --ckpt_path RUN/checkpoints/last.ckpt --config configs/data/set5.yaml

  change one thing   lightning fit --config configs/srdiff.yaml --config configs/region/yoda.yaml \\
                         --model.init_args.region.init_args.lower_bound 0.2
  see what it is     lightning fit --config configs/srdiff.yaml --print_config
  every option       lightning fit --help

Each run keeps its complete config.yaml, checkpoints, pictures and scores in runs/<experiment>/version_<n>; `lightning
fit --config` of that file repeats it, `--ckpt_path` of its last.ckpt continues it. Set DIFFSR_TRACEBACK=1 to see where
an error comes from.
"""


class ConfigError(ValueError):
    """A config file that cannot be read or composed; the message names the file."""


class CLI(LightningCLI):
    """LightningCLI over methods and data sets, where what is typed beats what a checkpoint stored."""

    typed: Sequence[str] = ()  # the command line as the user typed it, for the processes that Lightning starts

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `compose` and `experiment`."""
        parser.add_argument("--compose", type=list[str], default=[], help="Files this one builds on, in order.")
        parser.add_argument("--experiment", type=str, default="experiment", help="Name of the folder below runs/.")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's arguments came first on the command line, so that all others beat them."""

    def before_instantiate_classes(self) -> None:
        """Empties `compose`, so that the saved config stands alone, and hands the command line back."""
        config = self.config[self.config.subcommand]
        config.compose = []
        sys.argv[1:] = self.typed
        check_scale(config)


def check_scale(config: Namespace) -> None:
    """Refuses data of another scale than the checkpoint was trained for.

    Raises:
        CheckpointError: the scales disagree.
    """
    path = config.get("ckpt_path")
    scale = config.get("data.init_args.scale")
    if path is None or scale is None or not Path(path).is_file():
        return
    trained = data_config(read_checkpoint(path)).get("scale", scale)
    if trained != scale:
        raise CheckpointError(f"{path}: was trained for x{trained}, but the data is configured for x{scale}")


def layers(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files that `path` composes, depth first, and itself last.

    Raises:
        ConfigError: a file is absent, is no YAML mapping, or composes itself.
    """
    if path.resolve() in seen:
        raise ConfigError(f"{path}: composes itself")
    for below in _read_yaml(path).get("compose") or []:
        yield from layers(path.parent / below, (*seen, path.resolve()))
    yield path


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines")
    return content or {}


def take_option(arguments: list[str], *names: str) -> list[str]:
    """Removes `--name value` and `--name=value` from `arguments`; returns the values."""
    values, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name not in names:
            rest.append(argument)
        else:
            values.append(value if equals else next(remaining, ""))
    arguments[:] = rest
    return values


def expand(arguments: Sequence[str], scratch: Path) -> list[str]:
    """The command line that LightningCLI is given: least binding first.

    Arguments stored in the checkpoint, then config files with what they compose, then single options as typed.

    Args:
        arguments: Everything after the program's name.
        scratch: Folder for the checkpoint's arguments as a config file.
    """
    subcommand, rest = arguments[0], list(arguments[1:])
    configs = [Path(path) for path in take_option(rest, "--config", "-c")]
    inputs, outputs = take_option(rest, "--input"), take_option(rest, "--output")
    files = [layer for path in configs for layer in layers(path)]
    checkpoint = take_option(list(rest), "--ckpt_path")
    if checkpoint and checkpoint[-1] not in ("last", "best", "hpc", "registry"):
        files[:0] = _checkpoint_layers(subcommand, Path(checkpoint[-1]), bool(configs), scratch)
    named = [f"--experiment={configs[0].stem}"] if configs else []
    flags = [flag for path in files for flag in ("--config", str(path))]
    return [subcommand, *named, *flags, *_predict_options(inputs, outputs), *rest]


def _predict_options(inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    options = [f"--data.init_args.predict={path}" for path in inputs]
    return options + [f"--prediction_writer.folder={path}" for path in outputs]


def _checkpoint_layers(subcommand: str, path: Path, configured: bool, scratch: Path) -> list[Path]:
    """What a checkpoint alone says: its model and data, below the defaults of the subcommand."""
    checkpoint = read_checkpoint(path)
    stored: dict[str, Any] = {"model": model_config(checkpoint, path)}
    data_class = checkpoint.get("datamodule_hyper_parameters", {}).get("_class_path")
    if data_class and subcommand != "predict":
        stored["data"] = {"class_path": data_class, "init_args": data_config(checkpoint)}
    written = scratch / "checkpoint.yaml"
    written.write_text(yaml.safe_dump(stored))
    defaults = CONFIGS / f"{subcommand}.yaml"
    return [written] if configured or not defaults.is_file() else [*layers(defaults), written]


def configured_model(path: str | Path) -> tuple[SuperResolver, dict[str, Any]]:
    """The model that a config file describes, with fresh weights, and the resolved config itself."""
    parser = ArgumentParser(parser_mode=PARSER_MODE, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--compose", type=list[str])
    parser.add_argument("--trainer", type=dict[str, Any])
    parser.add_argument("--seed_everything", type=int)
    parser.add_subclass_arguments(SuperResolver, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    flags = [flag for layer in layers(Path(path)) for flag in ("--config", str(layer))]
    config = parser.parse_args(flags).as_dict()
    return build(config["model"], path), config


def run(arguments: Sequence[str]) -> None:
    """Runs one command line, without the program's name."""
    with tempfile.TemporaryDirectory(prefix="diffsr-") as scratch:
        CLI.typed = list(arguments)
        sys.argv[1:] = expand(arguments, Path(scratch))
        try:
            CLI(
                SuperResolver,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_kwargs={"parser_mode": PARSER_MODE},
                save_config_kwargs={"overwrite": True},
            )
        finally:
            sys.argv[1:] = CLI.typed


def main() -> None:
    """The console script. Errors in what the user gave are one message; the exit code is not 0."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    try:
        run(arguments)
    except (CheckpointError, MisconfigurationException, ValueError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        sys.exit(f"error: {error}\n(where it comes from: set {TRACEBACK}=1)")


if __name__ == "__main__":
    main()
