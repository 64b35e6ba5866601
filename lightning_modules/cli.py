"""The command: `lightning fit|validate|test|predict`."""

import logging
import os
import re
import sys
import tempfile
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.checkpoint import (
    CheckpointError,
    build,
    data_config,
    model_config,
    read_checkpoint,
    said_by_constructor,
)
from lightning_modules.super_resolver import SuperResolver

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PARSER_MODE = "omegaconf+"  # resolves ${...} after all files are merged
TRACEBACK = "DIFFSR_TRACEBACK"
FOLDER = "datamodules.folder.Folder"
WRITER = "callbacks.prediction_writer.PredictionWriter"

HELP = """lightning: diffusion super-resolution experiments

  train       lightning fit --config configs/quickstart.yaml      on photographs that are already here
              lightning fit --config configs/srdiff_yoda.yaml     the paper's recipe, on DIV2K; first configs/rrdb.yaml
  enlarge     lightning predict --ckpt_path RUN/checkpoints/last.ckpt --input PHOTOS --output FOLDER
  score       lightning test --ckpt_path RUN/checkpoints/last.ckpt --config configs/data/set5.yaml

  change one thing   lightning fit --config configs/sr3.yaml --config configs/region/yoda.yaml \\
                         --model.init_args.region.init_args.lower_bound 0.2
  see what it is     lightning fit --config configs/srdiff.yaml --print_config
  every option       lightning fit --help

Each run keeps its complete config.yaml, checkpoints, pictures and scores in runs/<experiment>/version_<n>; `lightning
fit --config` of that file repeats it, `--ckpt_path` of its last.ckpt continues it. Set DIFFSR_TRACEBACK=1 to see where
an error comes from.
"""


class ConfigError(ValueError):
    """A config file that cannot be read or composed; the message names the file."""


class SaveConfig(SaveConfigCallback):
    """Keeps each run's complete config beside its results; a prediction is no run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes `config.yaml` into the run's folder."""
        if stage != TrainerFn.PREDICTING:
            super().setup(trainer, pl_module, stage)


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

    def before_test(self) -> None:
        """Refuses a model that nobody trained, whose results would look like any other's.

        Raises:
            CheckpointError: there is no checkpoint, and the model has weights that only one could hold.
        """
        subcommand = self.config.subcommand
        untrained = any(parameter.requires_grad for parameter in self.model.parameters())
        if untrained and self.config[subcommand].ckpt_path is None:
            raise CheckpointError(
                f"{type(self.model).__name__} has only its initial weights to {subcommand} with: give a checkpoint as "
                "--ckpt_path (one of published weights: lightning import --help)"
            )

    before_validate = before_predict = before_test

    def after_predict(self) -> None:
        """Names the images that could not be enlarged; the others are written."""
        failures = getattr(self.datamodule, "failures", [])
        if failures:
            listed = "\n".join(f"  {reason}" for _, reason in failures)
            raise ValueError(f"{len(failures)} image(s) could not be read, the others are written:\n{listed}")


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

    With a checkpoint the defaults of the subcommand (configs/predict.yaml, say) and the arguments that the checkpoint
    stored; then the config files with what they compose; then single options as typed.

    Args:
        arguments: Everything after the program's name.
        scratch: Folder for what the checkpoint and `--input`, `--output` say, as config files.
    """
    subcommand, rest = arguments[0], list(arguments[1:])
    configs = [Path(path) for path in take_option(rest, "--config", "-c")]
    asked = {"input": take_option(rest, "--input"), "output": take_option(rest, "--output")}
    path = next(iter(take_option(list(rest), "--ckpt_path")[-1:]), None)
    checkpoint = None if path in (None, "last", "best", "hpc", "registry") else read_checkpoint(path)

    files = [layer for config in configs for layer in layers(config)]
    if checkpoint is not None and path is not None:
        files.insert(0, _write(scratch / "checkpoint.yaml", stored_config(checkpoint, path, subcommand)))
    if checkpoint is not None and (defaults := CONFIGS / f"{subcommand}.yaml").is_file():
        files[:0] = layers(defaults)
    if any(asked.values()):
        files.append(_write(scratch / "asked.yaml", _asked_config(asked)))
    name = configs[0].stem if configs else subcommand
    return [subcommand, f"--experiment={name}", *(flag for file in files for flag in ("--config", str(file))), *rest]


def stored_config(checkpoint: Mapping[str, Any], path: str, subcommand: str) -> dict[str, Any]:
    """What a checkpoint says of model and data; of the data, a prediction needs only how images are enlarged first."""
    stored: dict[str, Any] = {"model": without_defaults(model_config(checkpoint, path))}
    arguments = data_config(checkpoint)
    if subcommand == "predict":
        enlarging: dict[str, Any] = {key: arguments[key] for key in ("scale", "up_kernel") if key in arguments}
        if "scale" in enlarging:
            enlarging["crop"] = enlarging["scale"]  # nothing is cropped, but 160 is no multiple of 3
        stored["data"] = {"class_path": FOLDER, "init_args": enlarging}
    elif class_path := checkpoint.get("datamodule_hyper_parameters", {}).get("_class_path"):
        stored["data"] = {"class_path": class_path, "init_args": arguments}
    return stored


def without_defaults(part: Any) -> Any:
    """A stored description without what its constructors default to.

    A checkpoint stores every argument; of these jsonargparse hands on to a class named later whichever fit it, so that
    `--model.init_args.sampler DDIM` would take over Ancestral's eta of 1.
    """
    if not isinstance(part, Mapping):
        return part
    if not isinstance(part.get("class_path"), str) or "init_args" not in part:
        return {name: without_defaults(value) for name, value in part.items()}
    constructor: Any = locate(part["class_path"])
    usual = signature(constructor).parameters if constructor else {}  # what is absent, the parser says
    given = {
        name: without_defaults(value)
        for name, value in part["init_args"].items()
        if name not in usual or usual[name].default != value
    }
    return {**part, "init_args": given}


def _asked_config(asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if asked["input"]:
        config["data"] = {"class_path": FOLDER, "init_args": {"predict": asked["input"][-1]}}
    if asked["output"]:
        writer = {"class_path": WRITER, "init_args": {"folder": asked["output"][-1]}}
        config["trainer"] = {"callbacks": [writer]}
    return config


def _write(path: Path, config: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def configured_model(path: str | Path) -> tuple[SuperResolver, dict[str, Any]]:
    """The model that a config file describes, with fresh weights, and the resolved config itself.

    Raises:
        ConfigError: a file cannot be read or composed, or has a key that is unknown or a value that does not fit.
        CheckpointError: the model cannot be built.
    """
    parser = ArgumentParser(parser_mode=PARSER_MODE, exit_on_error=False)
    parser.add_argument("--config", action="config")
    for passed_over in ("compose", "experiment", "seed_everything", "trainer", "ckpt_path", "weights_only"):
        parser.add_argument(f"--{passed_over}", type=Any)
    parser.add_subclass_arguments(SuperResolver, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    flags = [flag for layer in layers(Path(path)) for flag in ("--config", str(layer))]
    try:
        config = parser.parse_args(flags).as_dict()
    except ArgumentError as error:
        raise ConfigError(f"{path}: {error}") from error
    if config["model"] is None:
        raise ConfigError(f"{path}: describes no model; give an experiment, such as configs/srdiff.yaml")
    # Parsing it once more would turn the dictionaries inside of its lists into objects.
    return build(deepcopy(config["model"]), path), config


def run(arguments: Sequence[str]) -> CLI:
    """Runs one command line, without the program's name; the trained objects are in what it returns."""
    with tempfile.TemporaryDirectory(prefix="diffsr-") as scratch:
        CLI.typed = list(arguments)
        sys.argv[1:] = expand(arguments, Path(scratch))
        try:
            return CLI(
                SuperResolver,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_kwargs={"parser_mode": PARSER_MODE},
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
            )
        finally:
            sys.argv[1:] = CLI.typed


def quieten() -> None:
    """Drops messages of libraries that no user of this command can act upon."""
    for message in (
        "`isinstance(treespec",
        "Precision bf16-mixed is not supported by the model summary",
        "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
        "Couldn't infer the batch indices",
    ):
        warnings.filterwarnings("ignore", message=re.escape(message))
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage())


def main() -> None:
    """The console script. Errors in what the user gave are one message; the exit code is not 0."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    quieten()
    try:
        run(arguments)
    except (CheckpointError, MisconfigurationException, ModuleNotFoundError, ValueError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        sys.exit(f"error: {said_by_constructor(error)}\n(where it comes from: set {TRACEBACK}=1)")


if __name__ == "__main__":
    main()
