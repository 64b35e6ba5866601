"""What config files describe, read as the command line reads them."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from datamodules.base import SRDataModule
from lightning_modules.config import PARSER
from lightning_modules.config_files import layers


def configured(configs: Sequence[str | Path], *options: str) -> SRDataModule:
    """The data module of some config files, later ones over earlier ones, and of options over all of them."""
    parser = ArgumentParser(**PARSER)
    parser.add_argument("--config", action="config")
    parser.add_argument("--compose", type=list[str])
    parser.add_subclass_arguments(SRDataModule, "data")
    files = [layer for config in configs for layer in layers(Path(config))]
    flags = [flag for file in files for flag in ("--config", str(file))]
    data: SRDataModule = parser.instantiate_classes(parser.parse_args([*flags, *options])).data
    return data
