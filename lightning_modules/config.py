"""The one reader of configs: files and what they compose, a checkpoint's arguments, what is typed; and what they build.

What binds least comes first: the defaults of the command (`configs/command/<command>.yaml`), the arguments that the
checkpoint stored, the config files with everything they compose, single options.
"""

import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.checkpoint import (
    CheckpointError,
    data_config,
    model_config,
    newest,
    newest_whole,
    read_checkpoint,
)
from lightning_modules.cluster import job
from lightning_modules.config_errors import ConfigError, Source, cause, explain, parse, with_option
from lightning_modules.config_files import CONFIGS, layers, read_yaml
from lightning_modules.super_resolver import SuperResolver
from lightning_modules.weights import ENLARGER, entry, is_name, names, resolve

# "omegaconf+" resolves ${...} after all files are merged. An abbreviated option would pass by `take_option`.
PARSER: dict[str, Any] = {"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False}
FOLDER = "datamodules.folder.Folder"
WRITER = "callbacks.prediction_writer.PredictionWriter"
WRITER_FLAGS = ("skip_existing", "overwrite")
_OF_THE_MODEL = ("scale", "up_kernel")  # arguments of data that a model depends on
RUNS = "trainer.logger.init_args"  # where an experiment's runs are: its save_dir and name


# Command lines.


@dataclass(frozen=True)
class CommandLine:
    """What a command was given, read but not yet parsed.

    Attributes:
        command: Its name, such as "fit".
        experiment: Name of the run's folder unless a file says otherwise.
        overlays: Names of the configs that are laid over the first.
        files: Config files, least binding first; those before `stored` are the command's defaults.
        defaults: How many of `files` are the command's defaults.
        stored: What the checkpoint says of model and data; empty without one.
        asked: What `--input` and `--output` say, as a config.
        options: Single options as typed.
        trained_scale: The scale that the checkpoint was trained for, if it says so.
        run: Name of the run's folder below the experiment's, where the run goes on in its folder or a scheduler's job
            names it; None for a new one.
    """

    command: str
    experiment: str
    overlays: list[str]
    files: list[Path]
    defaults: int
    stored: dict[str, Any]
    asked: dict[str, Any]
    options: list[str]
    trained_scale: int | None
    run: str | None

    def flags(self) -> list[str]:
        """What the parser is given after the command's name, least binding first."""
        ordered: list[Path | dict[str, Any]] = [*self.files, self.asked]
        ordered.insert(self.defaults, self.stored)
        return [f"--experiment={self.experiment}", *config_flags(ordered), *self.options]


def config_flags(ordered: Sequence[Path | Mapping[str, Any]]) -> list[str]:
    """`--config` options for files and for contents that stand in no file; empty ones are left out."""
    contents = [str(layer) if isinstance(layer, Path) else yaml.safe_dump(dict(layer)) for layer in ordered if layer]
    return [f"--config={content}" for content in contents]


def take_option(arguments: list[str], *names: str) -> list[str]:
    """Removes `--name value` and `--name=value` from `arguments`; returns the values.

    Raises:
        ConfigError: a value is missing or empty, as that of an unset variable is.
    """
    values, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name not in names:
            rest.append(argument)
            continue
        value = value if equals else next(remaining, "")
        if not value:
            raise ConfigError(f"{name} is empty")
        values.append(value)

    arguments[:] = rest
    return values


def take_flag(arguments: list[str], name: str) -> bool:
    """Removes a flag without a value from `arguments`; returns whether it was there."""
    there = name in arguments
    arguments[:] = [argument for argument in arguments if argument != name]
    return there


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Reads all that a command line names: config files, and the checkpoint, once.

    Args:
        arguments: The command's name and what follows it.

    Raises:
        ConfigError: a file cannot be read, or an option has no value.
        CheckpointError: the checkpoint cannot be used.
    """
    command, options = arguments[0], list(arguments[1:])
    configs = [Path(path).expanduser() for path in take_option(options, "--config", "-c")]
    flags = [name for name in WRITER_FLAGS if command == "predict" and take_flag(options, f"--{name}")]
    asked = _asked_config(take_option(options, "--input"), take_option(options, "--output"), flags)
    default = CONFIGS / "command" / f"{command}.yaml"
    defaults = list(layers(default)) if default.is_file() else []
    files = [*defaults, *(layer for config in configs for layer in layers(config))]

    experiment = configs[0].stem if configs else command
    given = _Given([read_yaml(file) for file in files], options)
    path, folder = _checkpoint_path(given, experiment, command)
    stored: dict[str, Any] = {}
    scale = None
    if path is not None:
        checkpoint = read_checkpoint(path, weights=False)
        stored = stored_config(checkpoint, path, command, given)
        scale = data_config(checkpoint).get("scale")
    take_option(options, "--ckpt_path")
    if path is not None:
        options.append(f"--ckpt_path={path}")
    overlays = [config.stem for config in configs[1:]]
    return CommandLine(command, experiment, overlays, files, len(defaults), stored, asked, options, scale, folder)


@dataclass(frozen=True)
class _Given:
    """The contents of config files, and options, before they are merged."""

    contents: list[dict[str, Any]]
    options: list[str]

    def last(self, key: str) -> Any:
        """The most binding value of a dotted key, None where there is none."""
        typed = take_option(list(self.options), f"--{key}")
        if typed:
            return typed[-1]
        for content in reversed(self.contents):
            value: Any = content
            for name in key.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None

    def class_path(self, key: str) -> str | None:
        """The class that a part was said to be of."""
        value = self.last(f"{key}.class_path") or self.last(key)
        return value if isinstance(value, str) else None


def _checkpoint_path(given: _Given, experiment: str, command: str) -> tuple[str | None, str | None]:
    """The checkpoint to read, and the name of the run's folder below the experiment's, None for a new one.

    "last" and "best" are looked for in the experiment's folder. Training goes on in the folder of the run whose newest
    checkpoint is given; with an older one, or with another experiment's, a run of its own begins. In a scheduler's job
    the job names the folder, and the checkpoints in it come before what is given, which is repeated when the scheduler
    starts the job again.
    """
    base = _Given([read_yaml(CONFIGS / "base.yaml"), *given.contents], given.options)
    name = base.last(f"{RUNS}.name")
    if name is None or "${" in name:  # base.yaml refers to the experiment
        name = given.last("experiment") or experiment
    root = Path(base.last(f"{RUNS}.save_dir")).expanduser() / name

    path, folder = given.last("ckpt_path"), job() if command == "fit" else None
    if command == "predict" and path in (None, "null") and given.class_path("model") is None:
        path = _enlarger(given.options)
    if folder is not None and any((root / folder / "checkpoints").glob("*.ckpt")):
        found = newest_whole(root / folder / "checkpoints")
        rank_zero_info(f"{root / folder}: the run goes on from {found.name}")
        return str(found), folder
    if path in (None, "null"):
        return None, folder

    found = newest(root, path) if path in ("last", "best") else resolve(path)
    if path in ("last", "best"):
        rank_zero_info(f"--ckpt_path {path}: {found}")
    if command == "fit" and path != "best" and root.is_dir():
        folder = _run_of(found.resolve(), root.resolve(), only_newest=path != "last") or folder
    if folder is not None:
        rank_zero_info(f"{root / folder}: the run goes on there")
    return str(found), folder


def _enlarger(options: Sequence[str]) -> str | None:
    """The packaged model that enlarges where nothing is said.

    Raises:
        ConfigError: it is not in this installation.
    """
    if {"-h", "--help"} & set(options):
        return None
    if not is_name(ENLARGER) or not entry(ENLARGER).present():
        methods = ", ".join(name for name in names() if entry(name).is_method)
        raise ConfigError(
            f"no --ckpt_path is given, and {ENLARGER}, which enlarges then, is not in this installation: give a "
            f"checkpoint or one of the names {methods} (lightning weights)"
        )
    rank_zero_info(f"no --ckpt_path is given: enlarging with {ENLARGER} (lightning weights)")
    return ENLARGER


def _run_of(checkpoint: Path, root: Path, only_newest: bool) -> str | None:
    """The folder below `root` of the run that a checkpoint belongs to; None for one of another experiment."""
    run = checkpoint.parent.parent
    if checkpoint.parent.name != "checkpoints" or root not in (run, run.parent) or not checkpoint.is_file():
        return None
    if only_newest and checkpoint != newest_whole(checkpoint.parent):
        return None
    return "" if run == root else run.name


def stored_config(checkpoint: Mapping[str, Any], path: str, command: str, given: _Given) -> dict[str, Any]:
    """What a checkpoint says of model and data.

    Args:
        checkpoint: Its content.
        path: Where it was read, for messages.
        command: The command it is read for. Images to enlarge are the user's, whatever it was trained on.
        given: What the command line says itself. Of other data than the checkpoint's own only how images are enlarged
            is taken over, which belongs to the model: a benchmark's settings are its own.
    """
    stored: dict[str, Any] = {"model": without_defaults(model_config(checkpoint, path))}
    arguments = data_config(checkpoint)
    trained_on = checkpoint.get("datamodule_hyper_parameters", {}).get("_class_path")
    named = given.class_path("data")
    if command == "predict" or _is_other_data(command, trained_on, arguments, given):
        dropped = sorted(arguments.keys() - set(_OF_THE_MODEL))
        if named is None and dropped and command != "predict":
            rank_zero_info(f"{path}: was trained on other data; not taken over from there: {', '.join(dropped)}")
        arguments = {key: arguments[key] for key in _OF_THE_MODEL if key in arguments}
        trained_on = named or (FOLDER if command == "predict" else trained_on)
        if "scale" in arguments and trained_on == FOLDER:
            arguments["crop"] = arguments["scale"]  # nothing is cropped, but 160 is no multiple of 3

    if trained_on is not None:
        stored["data"] = {"class_path": trained_on, "init_args": arguments}
    return stored


def _is_other_data(command: str, trained_on: str | None, arguments: Mapping[str, Any], given: _Given) -> bool:
    """Whether a command line names other data than a checkpoint's own.

    A class that is named is meant as the config describes it, except that a training goes on with what it had. Without
    a class, another folder or another name of a set means another data set.
    """
    named = given.class_path("data")
    if named is not None and (command != "fit" or named != trained_on):
        return True
    own = signature(cast(Any, locate(trained_on))).parameters if trained_on else {}
    asked = {name: given.last(f"data.init_args.{name}") for name in own if name not in (*_OF_THE_MODEL, "options")}
    return any(value is not None and str(value) != str(arguments.get(name)) for name, value in asked.items())


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
    usual = signature(constructor).parameters if constructor else {}  # what is missing, the parser says
    given = {
        name: without_defaults(value)
        for name, value in part["init_args"].items()
        if name not in usual or usual[name].default != value
    }
    return {**part, "init_args": given}


def _asked_config(inputs: Sequence[str], outputs: Sequence[str], flags: Sequence[str]) -> dict[str, Any]:
    """What `--input`, `--output` and the writer's flags say, as a config.

    Raises:
        ConfigError: there are several outputs.
    """
    if len(outputs) > 1:
        raise ConfigError(f"--output is given {len(outputs)} times; results go to one folder")
    config: dict[str, Any] = {}
    if inputs:
        images = inputs[0] if len(inputs) == 1 else list(inputs)
        config["data"] = {"class_path": FOLDER, "init_args": {"predict": images}}
    if outputs or flags:
        folder = {"folder": outputs[0]} if outputs else {}
        writer = {"class_path": WRITER, "init_args": folder | dict.fromkeys(flags, True)}
        config["trainer"] = {"callbacks": [writer]}
    return config


# Building.


def build(config: Mapping[str, Any], source: str | Path) -> SuperResolver:
    """The method that `{"class_path": ..., "init_args": ...}` describes, with fresh weights.

    Raises:
        CheckpointError: the description does not fit the installed classes.
    """
    parser = ArgumentParser(**PARSER)
    parser.add_subclass_arguments(SuperResolver, "model")
    try:
        parsed = parser.parse_object({"model": dict(config)})
    except (ArgumentError, TypeError, ValueError) as error:
        reason = explain(str(error), Source())
        raise CheckpointError(f"{source}: describes a model that cannot be built here: {reason}") from error

    try:
        with warnings.catch_warnings():  # of modules among the hyper-parameters: what is rebuilt stores none
            warnings.filterwarnings("ignore", "Attribute .* is an instance of `nn.Module`")
            model: SuperResolver = parser.instantiate(parsed).model
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: describes a model that cannot be built here: {cause(error)}") from error
    return model


def configured_model(path: str | Path) -> tuple[SuperResolver, dict[str, Any]]:
    """The model that a config file describes, with fresh weights, and the resolved config itself.

    Raises:
        ConfigError: a file cannot be read or composed, or has a key that is unknown or a value that does not fit.
        CheckpointError: the model cannot be built.
    """
    parser = ArgumentParser(**PARSER)
    parser.add_argument("--config", action="config")
    for passed_over in (
        "compose",
        "experiment",
        "checkpoint_every",
        "save_images",
        "seed_everything",
        "trainer",
        "ckpt_path",
        "weights_only",
    ):
        parser.add_argument(f"--{passed_over}", type=Any)

    parser.add_subclass_arguments(SuperResolver, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    files, known = list(layers(Path(path))), list(parser.get_defaults().keys())
    config: dict[str, Any] = parse(parser, config_flags(files), Source(files, known=known)).as_dict()
    if config["model"] is None:
        raise ConfigError(f"{path}: describes no model; give an experiment, such as configs/srdiff.yaml")

    # Parsing it once more would turn the dictionaries inside of its lists into objects.
    return build(deepcopy(config["model"]), path), config


def build_part(
    part: type, key: str, ordered: Sequence[Path | Mapping[str, Any]], options: Sequence[str]
) -> tuple[Any, Namespace]:
    """One part of an experiment, without the rest.

    Args:
        part: Its base class.
        key: Its place, such as `data.init_args.degradation`.
        ordered: Config files, read with what they compose, and contents of such files, least binding first.
        options: Single options, `--KEY=VALUE`, of the part or beside it.

    Returns:
        The part, None where the config has none; and the plain values beside it, which it may refer to.

    Raises:
        ConfigError: a file cannot be read, a key is unknown, or a value does not fit.
    """
    room, name = key.rsplit(".", 1)
    files: list[Path] = []
    contents: list[dict[str, Any]] = []
    for layer in ordered:
        below = list(layers(layer)) if isinstance(layer, Path) else []
        files += below
        contents += [read_yaml(file) for file in below] if isinstance(layer, Path) else [dict(layer)]
    beside = [_plain(_Given([content], []).last(room) or {}, name) for content in contents]

    parser = ArgumentParser(**PARSER)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(part, key)
    for sibling in sorted({sibling for values in beside for sibling in values} - {name}):
        parser.add_argument(f"--{room}.{sibling}", type=Any)
    flags = config_flags([_nested(room, values) for values in beside])
    config = parse(parser, [*flags, *options], Source(files, list(options)))
    try:
        return parser.instantiate(config)[key], config[room]
    except (TypeError, ValueError) as error:
        raise ConfigError(with_option(cause(error), config)) from error


def _plain(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entry `name`, and of the others those that refer to nothing."""
    return {key: value for key, value in values.items() if key == name or "${" not in str(value)}


def _nested(key: str, values: dict[str, Any]) -> dict[str, Any]:
    """`{"data": {"init_args": values}}` for "data.init_args"; empty where there are none."""
    for name in reversed(key.split(".") if values else []):
        values = {name: values}
    return values


def load_method(path: str | Path, device: torch.device | str = "cpu") -> SuperResolver:
    """The trained method of a checkpoint, in eval mode, ready for `super_resolve`.

    The one way to load a method without the command line: `load_from_checkpoint`, called on a base class, builds the
    base class.

    Args:
        path: A checkpoint, the folder of an exported method, or a name, see `weights.resolve`.
        device: Where its weights will be.

    Raises:
        WeightsError: the name is unknown, or its weights cannot be had.
        CheckpointError: the file is absent, damaged, unsafe, of another project, or its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    model = build(model_config(checkpoint, path), path)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model.trained_scale = data_config(checkpoint).get("scale")
    model.trained_kernel = data_config(checkpoint).get("up_kernel", "matlab")
    return model.eval().to(device)
