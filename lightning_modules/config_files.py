"""Config files: where they are, reading one, and the files that it composes."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.config_errors import ConfigError

_log = logging.getLogger(__name__)
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key written twice, of which YAML would silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """One mapping.

        Raises:
            ConfigError: a key stands in it twice, or is no word.
        """
        first: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{line}: a key must be a word, not a list or a mapping")
            if key.value in first:
                raise ConfigError(f"{line}: the key '{key.value}' is written twice, first in line {first[key.value]}")
            first[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of one config file.

    Raises:
        ConfigError: the file is missing, is not valid YAML, holds no mapping, or has a key twice.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        content = yaml.load(path.read_text(), Loader=_UniqueKeys)
    except ConfigError as error:
        raise ConfigError(f"{path}:{error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines")
    return content or {}


def found(path: Path) -> Path:
    """The file that is meant: `configs/...` is that of this installation where the current folder has none."""
    own = CONFIGS.joinpath(*path.parts[1:])
    if path.exists() or path.parts[:1] != (CONFIGS.name,) or not own.is_file():
        return path
    _log.warning("%s: is not in this folder; taken from %s", path, CONFIGS)
    return own


def layers(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files that `path` composes, depth first, and itself last unless it says nothing.

    Raises:
        ConfigError: a file cannot be read, or composes itself.
    """
    path = found(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: composes itself")
    content = read_yaml(path)
    composed = content.get("compose") or []
    if not isinstance(composed, list) or not all(isinstance(below, str) for below in composed):
        raise ConfigError(f"{path}: compose must be a list of files, such as [base.yaml, method/sr3.yaml]")

    for below in composed:
        yield from layers(path.parent / below, (*seen, path.resolve()))
    if content:
        yield path
