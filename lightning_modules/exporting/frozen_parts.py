"""The frozen parts of a method that an export leaves out, and where each comes from."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.running.look_ahead import parts
from lightning_modules.super_resolver import SuperResolver
from lightning_modules.weight_files import digest
from lightning_modules.weights import HUB, is_name

# Arguments that name weights: those of the part itself, or of the attribute that is called the same.
_NAMES_WEIGHTS = re.compile(r"(?:(\w+)_)?(?:weights|checkpoint)|(stages)")


@dataclass(frozen=True)
class FrozenPart:
    """A frozen part of a method, whose weights have a source of their own.

    Attributes:
        attribute: Where it is in the method, such as "region.attention".
        option: The argument that names its weights; None where its code finds them.
        source: What that argument says.
        numbers: How many numbers its weights have.
    """

    attribute: str
    option: str | None
    source: str
    numbers: int

    @property
    def is_local(self) -> bool:
        """Whether the source is a file or folder of this machine, which nobody else has."""
        known = self.option is None or is_name(self.source) or self.source.startswith(HUB)
        typed = self.source.startswith((".", "/", "~")) or Path(self.source).suffix in (".ckpt", ".pth", ".safetensors")
        return not known and (typed or Path(self.source).expanduser().exists())

    def described(self) -> str:
        """One line for a model card."""
        path = Path(self.source).expanduser()
        known = f", sha256 {digest(path)}" if self.is_local and path.is_file() else ""
        return f"`{self.attribute}` ({self.numbers:,} numbers): {self.source}{known}"


def frozen_parts(model: SuperResolver, config: Mapping[str, Any]) -> list[FrozenPart]:
    """What checkpoints of a method leave out.

    Args:
        model: The method.
        config: `{"class_path": ..., "init_args": ...}` that it was built from.
    """
    state, left = model.state_dict(), sorted(model.frozen_keys())
    found = []
    for attribute, option, source in _named_weights(config):
        own = [key for key in left if key.startswith(f"{attribute}.")]
        left = [key for key in left if key not in own]
        if own:
            found.append(FrozenPart(attribute, option, source, sum(state[key].numel() for key in own)))

    for attribute in sorted({key.partition(".")[0] for key in left}):
        numbers = sum(state[key].numel() for key in left if key.startswith(f"{attribute}."))
        found.append(FrozenPart(attribute, None, "found by the code that builds it", numbers))
    return found


def _named_weights(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Attribute, option and value of every argument that names weights, inner parts first."""
    rows = []
    for key, _, arguments in parts({"model": config}):
        inside = ".".join(name for name in key.split(".")[1:] if name != "init_args")
        for name, value in arguments.items():
            match = _NAMES_WEIGHTS.fullmatch(name)
            if match and value:
                attribute = ".".join(filter(None, (inside, match[1] or match[2])))
                shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                rows.append((attribute, f"--{key}.init_args.{name}", shown))
    yield from sorted(rows, key=lambda row: -row[0].count("."))
