"""What config files describe, read as the command line reads them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from datamodules.base import SRDataModule
from datamodules.degradations.degradation import Degradation
from lightning_modules.cli import CONFIGS, PARSER_MODE, ConfigError, layers


def configured(configs: Sequence[str | Path], *options: str) -> SRDataModule:
    """The data module of some config files, later ones over earlier ones, and of options over all of them."""
    parser = ArgumentParser(parser_mode=PARSER_MODE, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--compose", type=list[str])
    parser.add_subclass_arguments(SRDataModule, "data")
    files = [layer for config in configs for layer in layers(Path(config))]
    flags = [flag for file in files for flag in ("--config", str(file))]
    data: SRDataModule = parser.instantiate_classes(parser.parse_args([*flags, *options])).data
    return data


def build_degradation(names: Sequence[str | Path]) -> Degradation:
    """The degradation of config files, which need not name a data module, and of options; for `lightning preview`."""
    words = [str(name) for name in names]
    files, options = ([word for word in words if word.startswith("--") == option] for option in (False, True))
    try:
        return configured([CONFIGS / "data" / "div2k_x4.yaml", *files], *options).degradation
    except ConfigError as error:
        raise FileNotFoundError(str(error)) from error
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
