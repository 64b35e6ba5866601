"""Fixtures from disk, their checks, and one line of verdict each."""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import tests.parity


@dataclass(frozen=True)
class Fixture:
    """One `<name>.safetensors` + `<name>.json`: `meta` is the whole json, `config` its `config` entry or itself."""

    name: str
    meta: dict[str, Any]
    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """`actual` must equal `expected` within `atol + rtol * |expected|` everywhere; infinities must match."""

    what: str
    actual: Tensor
    expected: Tensor
    atol: float = 0.0
    rtol: float = 0.0

    @property
    def error(self) -> float:
        """Largest absolute difference; infinite where shapes, infinities or NaNs disagree."""
        if self.actual.shape != self.expected.shape:
            return float("inf")
        actual, expected = self.actual.double(), self.expected.double()
        difference = torch.where(actual == expected, 0.0, (actual - expected).abs())
        return float(difference.nan_to_num(nan=float("inf")).max()) if difference.numel() else 0.0

    @property
    def passed(self) -> bool:
        """Whether every element lies within its tolerance."""
        if self.actual.shape != self.expected.shape:
            return False
        actual, expected = self.actual.double(), self.expected.double()
        return bool(
            torch.all((actual == expected) | ((actual - expected).abs() <= self.atol + self.rtol * expected.abs()))
        )


Check = Callable[[Fixture], Iterable[Comparison]]


def load(path: Path) -> Fixture:
    """Reads `path` (the .safetensors file) and the .json beside it."""
    meta = json.loads(path.with_suffix(".json").read_text())
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "outputs": {}}
    for key, value in load_file(path).items():
        group, name = key.split("/", 1)
        groups[group][name] = value
    return Fixture(name=path.stem, meta=meta, config=meta.get("config", meta), **groups)


def checks() -> dict[str, Check]:
    """Every kind that a family file of this package knows."""
    found: dict[str, Check] = {}
    for module in pkgutil.iter_modules(tests.parity.__path__):
        family = importlib.import_module(f"tests.parity.{module.name}") if module.name[0] != "_" else None
        found.update(getattr(family, "CHECKS", {}))
    return found


def check_of(fixture: Fixture, known: dict[str, Check]) -> Check | None:
    """The check for the fixture's kind: what `config.kind` says, else the longest kind that its name begins with."""
    if "kind" in fixture.config:
        return known.get(fixture.config["kind"])
    kinds = sorted((kind for kind in known if fixture.name.startswith(kind)), key=len)
    return known[kinds[-1]] if kinds else None


def judge(folders: Iterable[Path]) -> Iterator[tuple[str, bool]]:
    """One line and its verdict for each fixture below `folders`.

    Raises:
        FileNotFoundError: a folder holds no fixture.
    """
    known = checks()
    for folder in folders:
        paths = sorted(folder.rglob("*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"no fixture (<name>.safetensors with <name>.json) below {folder}")
        for path in paths:
            yield verdict(load(path), known)


def verdict(fixture: Fixture, known: dict[str, Check]) -> tuple[str, bool]:
    """The worst comparison of a fixture, as a line to print, and whether all passed."""
    check = check_of(fixture, known)
    if check is None:
        return f"{fixture.name:32s} unknown kind: {fixture.config.get('kind', 'none given')}  FAIL", False
    with torch.no_grad():
        results = list(check(fixture))
    failed = [result for result in results if not result.passed]
    worst = max(failed or results, key=lambda result: result.error)
    line = f"{fixture.name:32s} {len(results):3d} compared  largest error {worst.error:.2e} ({worst.what})"
    tolerance = f"tolerance {worst.atol:.0e}" + (f" + {worst.rtol:.0e} relative" if worst.rtol else "")
    return f"{line}  {tolerance}  {'FAIL' if failed else 'PASS'}", not failed
