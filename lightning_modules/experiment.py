"""`lightning fit | validate | test | predict`: Lightning's command line over methods and data sets."""

import argparse
import contextlib
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.checkpoint import CheckpointError
from lightning_modules.config import PARSER, CommandLine, read_command_line
from lightning_modules.config_errors import ConfigError, Source, cause, parse, with_option
from lightning_modules.super_resolver import SuperResolver

DESCRIPTIONS = {
    "fit": "Trains a method: --config EXPERIMENT.yaml, further --config files laid over it, single options. With "
    "--ckpt_path a run goes on; `last` is the newest last.ckpt of the experiment, `best` its best by the monitored "
    "metric.",
    "validate": "Scores a checkpoint (--ckpt_path, a file or `last` or `best`) on its validation data.",
    "test": "Scores a checkpoint (--ckpt_path, a file or `last` or `best`) on test data, such as --config "
    "configs/data/set5.yaml.",
    "predict": "Enlarges images: --ckpt_path CHECKPOINT --input IMAGE_OR_FOLDER [--input MORE] --output FOLDER "
    "[--skip_existing | --overwrite]. "
    "--input and --output are short for the options of datamodules.folder.Folder and "
    "callbacks.prediction_writer.PredictionWriter.",
}


class SaveConfig(SaveConfigCallback):
    """Keeps each run's complete config beside its results, as soon as it has begun; a prediction is no run.

    A start that fails before, because the data are missing say, leaves no folder that would count as a version. `last`
    beside the folder of the newest training run names it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Waits: the data are not looked at yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes `config.yaml` into the run's folder, and tells loggers elsewhere."""
        super().setup(trainer, pl_module, "fit")
        if trainer.is_global_zero and isinstance(trainer.logger, CSVLogger):
            name_newest(Path(trainer.logger.log_dir), Path(trainer.logger.root_dir))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_start`, where validation is all that is done."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            super().setup(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_start`."""
        super().setup(trainer, pl_module, "test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the empty folder that Lightning made for a run which then did not begin."""
        if self.already_saved or not trainer.is_global_zero or not isinstance(trainer.logger, CSVLogger):
            return
        with contextlib.suppress(OSError):  # it holds something
            Path(trainer.logger.log_dir).rmdir()
            Path(trainer.logger.root_dir).rmdir()

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the config to every logger whose folder does not hold it already."""
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams(self.config.as_dict())


def name_newest(run: Path, root: Path) -> None:
    """Makes `root/last` a link to `run`, one of its subfolders."""
    link = root / "last"
    if run.parent != root or run.name == link.name:
        return
    if link.exists() and not link.is_symlink():
        rank_zero_warn(f"{link} is no link and stays as it is; the newest run is {run.name}")
        return
    new = root / f".last-{run.name}"
    try:
        new.symlink_to(run.name)
        new.replace(link)
    except OSError as error:  # a file system without links
        rank_zero_warn(f"{link} could not be made a link to {run.name}: {error}")


class CLI(LightningCLI):
    """LightningCLI over methods and data sets, where what is typed beats what a checkpoint stored.

    `sys.argv` stays as typed: the processes that Lightning starts for further devices read it again.
    """

    def __init__(self, line: CommandLine) -> None:
        self.line = line
        commands = {name: {**PARSER, "description": text} for name, text in DESCRIPTIONS.items()}
        super().__init__(
            SuperResolver,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={**PARSER, **commands},
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"enable_autolog_hparams": False},  # `SaveConfig` does it, once the run has begun
            args=[line.command, *line.flags()],
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `compose` and `experiment`."""
        # Without help an argument is not written to configs, which therefore stand alone: `compose` has been followed.
        parser.add_argument("--compose", type=list[str], default=[], help=argparse.SUPPRESS)
        parser.add_argument("--experiment", type=str, default="experiment", help="Name of the folder below runs/.")

    def parse_arguments(self, parser: ArgumentParser, args: ArgsType) -> None:
        """Parses the layers.

        Raises:
            ConfigError: a key is unknown, or a value does not fit.
        """
        assert isinstance(args, list)
        known = list(self._subcommand_parsers[self.line.command].get_defaults().keys())
        self.config = parse(parser, args, Source(self.line.files, self.line.options, known))

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's arguments were the first layer, so that all others beat them."""

    def before_instantiate_classes(self) -> None:
        """Refuses data of another scale than the checkpoint was trained for.

        Raises:
            CheckpointError: the scales disagree.
        """
        config, trained = self.config[self.config.subcommand], self.line.trained_scale
        scale = config.get("data.init_args.scale")
        if None not in (trained, scale) and trained != scale:
            raise CheckpointError(
                f"{config.ckpt_path}: was trained for x{trained}, but the data is configured for x{scale}"
            )

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer.

        Raises:
            ConfigError: a constructor lacks an argument. Other errors keep their class; all name the option.
        """
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, OSError) as error:
            original = cause(error)
            text = with_option(original, self.config[self.config.subcommand])
            if isinstance(original, TypeError):
                raise ConfigError(text) from error
            original.args = (text,)
            raise original from None

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
        """Names the images that were not enlarged; the others are written.

        Raises:
            ValueError: there are any.
        """
        parts = [self.datamodule, *cast(Any, self.trainer).callbacks]
        reasons = list(dict.fromkeys(reason for part in parts for reason in getattr(part, "failures", {}).values()))
        if reasons:
            listed = "\n".join(f"  {reason}" for reason in reasons)
            raise ValueError(f"{len(reasons)} image(s) could not be enlarged, the others are written:\n{listed}")


def run(arguments: Sequence[str]) -> CLI:
    """Runs one command line, without the program's name; the trained objects are in what it returns."""
    return CLI(read_command_line(arguments))


def main(arguments: Sequence[str]) -> None:
    """Runs one command line for a user at a terminal.

    Raises:
        ConfigError: Lightning refuses the configuration.
    """
    quieten()
    try:
        run(arguments)
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error


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
