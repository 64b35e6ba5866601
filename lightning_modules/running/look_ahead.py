"""One look ahead: all that an experiment needs and this machine lacks, before a model is built or a network asked."""

import re
from collections.abc import Collection, Iterator, Mapping
from pydoc import locate
from typing import Any, Protocol

import torch


class Part(Protocol):
    """What a class that a config names may have, if it needs more than its arguments: files, weights, data."""

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], *, splits: Collection[str], fresh: bool) -> str | None:
        """What is missing on this machine, and the way out; None where nothing is.

        It builds nothing large and asks no network.

        Args:
            arguments: Those of the constructor, with its defaults.
            splits: The splits of the data that will be read: "train", "val", "test" or "predict".
            fresh: Whether training begins, and no checkpoint will replace the weights.
        """

    @classmethod
    def downloads(cls, arguments: Mapping[str, Any]) -> str | None:
        """What it would download; None where nothing. It is told beside what is missing."""


def lacking(config: Mapping[str, Any], *, splits: Collection[str], fresh: bool) -> list[str]:
    """All that the parts of a config lack, each with its option and the way out; empty where nothing is missing.

    Args:
        config: A parsed config, as plain values.
        splits: See `Part.missing`.
        fresh: See `Part.missing`.
    """
    found, downloads = [without_accelerator(config.get("trainer", {}).get("accelerator", "auto"))], []
    for key, part, arguments in parts(config):
        if hasattr(part, "missing"):
            text = part.missing(arguments, splits=splits, fresh=fresh)
            found.append(text and named(text, key, arguments))
        if hasattr(part, "downloads"):
            text = part.downloads(arguments)
            downloads.append(text and named(f"{text} would be downloaded", key, arguments))
    problems = unique(found)
    return [*problems, *unique(downloads)] if problems else []


def without_accelerator(accelerator: Any) -> str | None:
    """What to do where the configured accelerator is not there."""
    there = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available()}
    there |= {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not isinstance(accelerator, str) or there.get(accelerator, True):
        return None
    return (
        f"trainer.accelerator: PyTorch finds no {accelerator} on this machine: add --config configs/hardware/cpu.yaml, "
        "or --trainer.accelerator auto"
    )


def parts(config: Any, key: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every part of a config: its dotted place, its class, and the constructor's arguments."""
    if isinstance(config, list):
        for entry in config:
            yield from parts(entry, key)
    elif isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield key, locate(config["class_path"]), config.get("init_args") or {}
        for name, value in config.items():
            yield from parts(value, f"{key}.{name}" if key else name)


def named(text: str, key: str, arguments: Mapping[str, Any]) -> str:
    """A text with the part that it is about, or with the option where it begins with an argument's name."""
    argument = re.match(r"(\w+): ", text)
    if argument and argument[1] in arguments:
        return f"{text} [--{key}.init_args.{argument[1]}]"
    return text if re.search(r"--(model|data|trainer)\.", text) else f"{key}: {text}"


def unique(texts: list[str | None]) -> list[str]:
    """The texts without repetitions, as of weights that two parts share."""
    return list(dict.fromkeys(text for text in texts if text))
