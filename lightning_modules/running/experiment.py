"""`lightning fit | validate | test | predict`: Lightning's command line over methods and data sets."""

import argparse
import logging
import os
import re
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_modules.checkpoint import CheckpointError
from lightning_modules.checkpoint_io import WholeCheckpointIO
from lightning_modules.cluster import join_restarted, leave, processes, under_slurm
from lightning_modules.config import PARSER, CommandLine, read_command_line, take_option
from lightning_modules.config_errors import ConfigError, Source, cause, parse, with_option
from lightning_modules.evaluation.results import NAME, read_results
from lightning_modules.evaluation.summary import table
from lightning_modules.running.advice import unlikely_to_reach_bicubic
from lightning_modules.running.look_ahead import lacking
from lightning_modules.running.next_steps import next_steps
from lightning_modules.running.run_log import RunLog
from lightning_modules.running.run_title import run_title, tags
from lightning_modules.running.tensorboard_log import TensorBoardLog
from lightning_modules.running.verify_resume import verify
from lightning_modules.super_resolver import SuperResolver
from lightning_modules.whole_file import whole_file

WANDB_ID = "wandb_id.txt"  # in the run's folder: the id of its W&B run
PRECISIONS = ("bf16-mixed", "16-mixed", "32-true", "None", "bf16", "16", "32")
DESCRIPTIONS = {
    "fit": "Trains a method: --config EXPERIMENT.yaml, further --config files laid over it, single options. With "
    "--ckpt_path a run goes on; `last` is the newest last.ckpt of the experiment, `best` its best by the monitored "
    "metric. --verify_resume N trains N steps twice, once with a kill amid them, and compares.",
    "validate": "Scores a checkpoint (--ckpt_path: a file, a name of `lightning weights`, `last` or `best`) on its "
    "validation data.",
    "test": "Scores a checkpoint (--ckpt_path: a file, a name of `lightning weights`, `last` or `best`) on test data: "
    "--on set5 set14 b100 names configs of configs/data, config files or folders, each tested in turn, with one table "
    "for all; or --config configs/data/set5.yaml once. The images are kept; --save_images false leaves them out.",
    "predict": "Enlarges images: --input IMAGE_OR_FOLDER [--input MORE] --output FOLDER "
    "[--ckpt_path CHECKPOINT_OR_NAME] [--skip_existing | --overwrite]. "
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
        """Writes `config.yaml` into the run's folder, and tells loggers elsewhere; a resumed run repeats some lines."""
        self._begin(trainer, pl_module, "fit")
        logger = trainer.logger
        if isinstance(logger, RunLog):
            logger.keep_until(trainer.fit_loop.epoch_loop._batches_that_stepped)
        if trainer.is_global_zero and isinstance(logger, CSVLogger):
            name_newest(Path(logger.log_dir), Path(logger.root_dir))
            for other in trainer.loggers:
                if isinstance(other, WandbLogger) and other.version is not None:
                    (Path(logger.log_dir) / WANDB_ID).write_text(f"{other.version}\n")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_start`, where validation is all that is done."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_start`."""
        self._begin(trainer, pl_module, "test")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.log_dir  # a collective call
        for logger in trainer.loggers:
            if trainer.is_global_zero and isinstance(logger, WandbLogger) and self.folder is not None:
                run, version = logger.experiment, Path(self.folder).name
                if not str(run.name).endswith(version):
                    run.name = f"{run.name} {version}"
        super().setup(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the empty folder that was made for a run which then did not begin."""
        if not self.already_saved and trainer.is_global_zero and isinstance(trainer.logger, RunLog):
            trainer.logger.give_up()

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the config, and gives it to every logger whose folder does not hold it already."""
        if self.folder is not None:
            with whole_file(Path(self.folder) / self.config_filename) as part:
                self.parser.save(self.config, part, skip_none=False, overwrite=True, multifile=False)
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
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"enable_autolog_hparams": False},  # `SaveConfig` does it, once the run has begun
            args=[line.command, *line.flags()],
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `compose`, `experiment`, `checkpoint_every` and `save_images`."""
        # Without help an argument is not written to configs, which therefore stand alone: `compose` has been followed.
        parser.add_argument("--compose", type=list[str], default=[], help=argparse.SUPPRESS)
        parser.add_argument("--experiment", type=str, default="experiment", help="Name of the folder below runs/.")
        parser.add_argument("--checkpoint_every", type=int | None, default=None, help="Steps between checkpoints.")
        parser.add_argument(
            "--save_images", type=bool | None, default=None, help="Whether a test writes its images as files (it does)."
        )

    def parse_arguments(self, parser: ArgumentParser, args: ArgsType) -> None:
        """Parses the layers.

        Raises:
            ConfigError: a key is unknown, or a value does not fit.
        """
        assert isinstance(args, list)
        known = list(self._subcommand_parsers[self.line.command].get_defaults().keys())
        self.config = parse(parser, args, Source(self.line.files, self.line.options, known))
        seed = self.config[self.line.command].seed_everything
        if seed is not True and not 0 <= seed < 2**32:
            raise ConfigError(f"--seed_everything: must be 0 to {2**32 - 1}, got {seed}")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's arguments were the first layer, so that all others beat them."""

    def before_instantiate_classes(self) -> None:
        """Refuses data of another scale than the checkpoint's, sets `checkpoint_every`, looks ahead for what lacks.

        Raises:
            CheckpointError: the scales disagree.
            ConfigError: the precision is not supported; nothing writes checkpoints by steps; or this machine lacks
                something that the experiment needs, all of which is listed.
        """
        config, trained = self.config[self.config.subcommand], self.line.trained_scale
        scale = config.get("data.init_args.scale")
        if None not in (trained, scale) and trained != scale:
            raise CheckpointError(
                f"{config.ckpt_path}: was trained for x{trained}, but the data is configured for x{scale}"
            )
        if str(config.trainer.precision) not in PRECISIONS:
            raise ConfigError(
                f"--trainer.precision {config.trainer.precision}: weights and coefficients are kept in float32 here; "
                f"give one of {', '.join(PRECISIONS[:3])}"
            )
        self._name_wandb_run(config)
        if config.get("checkpoint_every") is not None:
            set_checkpoint_every(config.trainer.callbacks, config.checkpoint_every)

        if config.get("save_images") is not None:
            set_save_images(config.trainer.callbacks, config.save_images)

        splits = {"fit": ["train", "val"], "validate": ["val"]}.get(self.line.command, [self.line.command])
        if config.trainer.limit_val_batches == 0:
            splits = [split for split in splits if split != "val"]
        fresh = self.line.command == "fit" and config.ckpt_path is None
        problems = lacking(config.as_dict(), splits=splits, fresh=fresh)
        if problems:
            raise ConfigError("this machine lacks what the experiment needs:\n  " + "\n  ".join(problems))
        warning = unlikely_to_reach_bicubic(config.as_dict()) if fresh and not config.trainer.fast_dev_run else None
        if warning is not None:
            rank_zero_warn(warning)

    def _name_wandb_run(self, config: Namespace) -> None:
        """Says what a run is called at W&B, and which group and tags it has, unless the config does."""
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        for logger in loggers:
            if isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger"):
                overlays = [name for name in self.line.overlays if name != "wandb"]
                if logger.init_args.name == config.experiment:
                    logger.init_args.name = run_title(config.experiment, overlays, self.line.options)
                own = dict(logger.get("dict_kwargs") or {})
                told = {"group": config.experiment, "job_type": self.line.command, "tags": tags(config.as_dict())}
                logger["dict_kwargs"] = told | own

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

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer, which writes whole checkpoints and resumes where this run was."""
        config = self._get(self.config_init, "trainer")
        configured = config.plugins or []
        plugins = [*(configured if isinstance(configured, list) else [configured]), WholeCheckpointIO()]
        if under_slurm() and SLURMEnvironment.detect():
            # `callbacks.interruptions` requeues; Lightning's handler also runs in data workers, with their old state.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        kwargs |= {"plugins": plugins, **started_processes(config)}
        if config.fast_dev_run:  # leaves nothing, but Lightning would write the last checkpoint
            config.callbacks = [part for part in config.callbacks or [] if not isinstance(part, Checkpoint)]

        loggers = config.logger if isinstance(config.logger, list) else [config.logger]
        for logger in loggers:
            if isinstance(logger, RunLog) and self.line.run is not None:
                logger.go_on_in(self.line.run)
                same_wandb_run(Path(logger.log_dir))
        for logger in loggers:
            if isinstance(logger, TensorBoardLog):
                logger.run_log = next((each for each in loggers if isinstance(each, RunLog)), None)
        on_gpus = torch.cuda.is_available() and config.accelerator not in ("cpu",)
        join_restarted("nccl" if on_gpus else "gloo")
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Makes `val_check_interval` count steps, as everything else does; Lightning counts batches."""
        trainer = cast(Any, self.trainer)
        if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch is None:
            trainer.val_check_interval *= trainer.accumulate_grad_batches

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

    def after_fit(self) -> None:
        """Says where everything is, and what to type next."""
        folder = Path(self.trainer.log_dir or ".")  # a collective call
        if self.trainer.is_global_zero and not cast(Any, self.trainer).fast_dev_run:
            print(*next_steps(self.trainer, folder), sep="\n", flush=True)

    def after_test(self) -> None:
        """Shows the scores beside bicubic's, and where the results are."""
        path = Path(self.trainer.log_dir or ".") / NAME  # a collective call
        if self.trainer.is_global_zero and path.is_file() and not cast(Any, self.trainer).fast_dev_run:
            name = str(getattr(self.datamodule, "set", type(self.datamodule).__name__)).lower()
            print(f"\n{table({name: read_results(path)})}\n\n{path}", flush=True)

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


def set_checkpoint_every(callbacks: list[Namespace] | None, steps: int) -> None:
    """Sets `every_n_train_steps` where it is set already, wherever in the list of callbacks that is.

    Raises:
        ConfigError: it is set nowhere, or in several callbacks; or `steps` is below 1.
    """
    if steps < 1:
        raise ConfigError(f"--checkpoint_every: must be at least 1, got {steps}")
    key = "init_args.every_n_train_steps"
    found = [callback for callback in callbacks or [] if callback.get(key) is not None]
    if len(found) != 1:
        raise ConfigError(
            f"--checkpoint_every: {len(found)} of trainer.callbacks write checkpoints every few steps, so that it is "
            "not clear which is meant; give every_n_train_steps in a config"
        )
    found[0][key] = steps


def set_save_images(callbacks: list[Namespace] | None, keep: bool) -> None:
    """Sets whether the images of a test are kept.

    Raises:
        ConfigError: nothing keeps images.
    """
    found = [each for each in callbacks or [] if each.class_path.endswith("KeptImages")]
    if not found:
        raise ConfigError("--save_images: none of trainer.callbacks is callbacks.kept_images.KeptImages")
    for callback in found:
        callback["init_args.keep"] = keep


def started_processes(config: Any) -> dict[str, Any]:
    """Trainer arguments for the nodes and processes that `srun` started; empty where it started none."""
    found = processes()
    if found is None:
        return {}
    nodes, each = found
    if (config.num_nodes, config.devices) != found:
        rank_zero_info(f"Slurm started {each} process(es) on each of {nodes} node(s); num_nodes and devices follow it")
    together: dict[str, Any] = {"num_nodes": nodes, "devices": each}
    if nodes * each > 1 and config.strategy == "auto":
        # Without broadcast of buffers, since processes may validate different numbers of images.
        together["strategy"] = DDPStrategy(broadcast_buffers=False, timeout=timedelta(minutes=30))
    return together


def same_wandb_run(folder: Path) -> None:
    """Makes a run that goes on in `folder` also go on in W&B, unless the environment names another run there."""
    if (folder / WANDB_ID).is_file() and "WANDB_RUN_ID" not in os.environ:
        os.environ["WANDB_RUN_ID"] = (folder / WANDB_ID).read_text().strip()
        os.environ.setdefault("WANDB_RESUME", "allow")


def run(arguments: Sequence[str]) -> CLI:
    """Runs one command line, without the program's name; the trained objects are in what it returns."""
    return CLI(read_command_line(arguments))


def main(arguments: Sequence[str]) -> int:
    """Runs one command line for a user at a terminal; returns the exit code.

    Raises:
        ConfigError: Lightning or W&B refuses the configuration.
    """
    quieten()
    command, *options = arguments
    steps = take_option(options, "--verify_resume") if command == "fit" else []
    if steps:
        return verify(options, steps[-1])

    try:
        run(arguments)
        leave()
    except SystemExit:  # by a signal, on which all processes have agreed
        leave()
        raise
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        if not type(error).__module__.startswith("wandb."):  # imported only where it is used
            raise
        raise ConfigError(
            f"W&B: {' '.join(str(error).split())} Or keep the run on this machine with WANDB_MODE=offline, or leave "
            "configs/logger/wandb.yaml out"
        ) from error
    return 0


def quieten() -> None:
    """Drops messages of libraries that no user of this command can act upon."""
    for message in (
        "The `srun` command is available on your system but is not used",
        "Total length of `list` across ranks is zero",  # `SRDataModule.val_dataloader` says it
        "Checkpoint directory",  # of a run that goes on in its folder
        "The dirpath has changed from",  # a test has a folder of its own
        "`isinstance(treespec",
        "Precision bf16-mixed is not supported by the model summary",
        "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
        "Couldn't infer the batch indices",
    ):
        warnings.filterwarnings("ignore", message=re.escape(message))
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage())
