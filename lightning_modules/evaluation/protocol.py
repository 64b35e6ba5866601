"""Named, versioned protocols: what data, which images and which scores a number of a table stands for.

A protocol is a config, `configs/protocol/<name>@<version>.yaml`. What its `data` section says must hold for a run under
it; a change of what numbers mean is a new version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS, layers, read_yaml

FOLDER = CONFIGS / "protocol"
MARK = "UnderProtocol"  # the callback that names it
# What does not change what is measured, or belongs to the method: up_kernel is what its weights were trained with.
FREE = {"root", "num_workers", "batch_size", "val_batch_size", "crop", "up_kernel", "train", "val"}


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        name: With its version, such as "classic-bicubic-x4-y@1".
        data: `class_path` and `init_args` that must hold, as written.
        settings: The arguments of `UnderProtocol`.
        callbacks: The scores that it adds, as its config lists them.
    """

    name: str
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    callbacks: tuple[Mapping[str, Any], ...]

    @property
    def scale(self) -> int:
        """HR size over LR size."""
        return int(self.data["init_args"]["scale"])


def names() -> list[str]:
    """All protocols."""
    return sorted(path.stem for path in FOLDER.glob("*@*.yaml"))


def read_protocol(name: str) -> Protocol:
    """The protocol of a name such as "classic-bicubic-x4-y@1", or of the path of its config.

    Raises:
        ConfigError: there is none.
    """
    path = FOLDER / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise ConfigError(f"{name}: no such protocol; there are {', '.join(names())}")

    data: dict[str, Any] = {"init_args": {}}
    settings: dict[str, Any] = {}
    callbacks: list[Mapping[str, Any]] = []
    for layer in layers(path):
        content = read_yaml(layer)
        part = content.get("data") or {}
        data |= {"class_path": part["class_path"]} if "class_path" in part else {}
        data["init_args"] |= part.get("init_args") or {}
        for callback in (content.get("trainer") or {}).get("callbacks+") or []:
            if callback["class_path"].endswith(f".{MARK}"):
                settings = callback["init_args"]
            else:
                callbacks.append(callback)
    return Protocol(path.stem, data, settings, tuple(callbacks))


def departures(protocol: Protocol, class_path: str, config: Mapping[str, Any]) -> list[str]:
    """In what data differ from those of a protocol, one line each.

    Args:
        protocol: The protocol.
        class_path: The class of the data module.
        config: Its arguments, as plain values.
    """
    found = []
    allowed = {protocol.data["class_path"], *protocol.settings.get("also", [])}
    if class_path not in allowed:
        found.append(f"data is {class_path}, not {' or '.join(sorted(allowed))}")
    wanted = {key: value for key, value in protocol.data["init_args"].items() if key not in FREE}
    if class_path != protocol.data["class_path"]:  # its own arguments name its own images
        wanted = {key: value for key, value in wanted.items() if key in config}
    return found + _differences(wanted, config, "data.init_args")


def _differences(wanted: Any, found: Any, place: str) -> list[str]:
    if isinstance(wanted, str) and "${" in wanted:  # refers to a value that is compared itself
        return []
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return [line for key in wanted for line in _differences(wanted[key], found.get(key), f"{place}.{key}")]
    return [] if wanted == found else [f"{place} is {found}, not {wanted}"]
