"""Fixtures from disk, their checks, and one line of verdict each."""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tests.parity
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.parameterization import Clean
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import Randn
from lightning_modules.diffusion.samplers import AfterStep


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


class FixtureError(Exception):
    """A folder or file that is no fixture; the message names it."""


def load(path: Path) -> Fixture:
    """Reads `path` (the .safetensors file) and the .json beside it.

    Raises:
        FixtureError: one of the two is missing.
    """
    for part in (path, path.with_suffix(".json")):
        if not part.is_file():
            raise FixtureError(f"{part}: missing; a fixture is <name>.safetensors with <name>.json beside it")
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


def fixtures(folder: Path) -> list[Path]:
    """The .safetensors files of the fixtures below a folder, also of those of which only the .json is there."""
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")]
    return sorted({path.with_suffix(".safetensors") for path in files})


def judge(folders: Iterable[Path]) -> Iterator[tuple[str, bool]]:
    """One line and its verdict for each fixture below `folders`.

    Raises:
        FixtureError: there is no fixture below a folder.
    """
    known = checks()
    for folder in folders:
        paths = fixtures(folder)
        if not paths:
            raise FixtureError(f"no fixture (<name>.safetensors with <name>.json) below {folder}")
        for path in paths:
            try:
                yield verdict(load(path), known)
            except FixtureError as error:
                yield f"{path.stem:32s} {error}  FAIL", False


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


@dataclass(frozen=True)
class StandIn(Denoiser):
    """A denoiser whose estimate is a formula of state and time, in place of a network."""

    formula: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)

    def estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The formula's value."""
        return self.formula(x_t, t)


def stand_in(process: Process, anchor: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """A denoiser on `process` from `anchor [B,C,H,W]` that estimates clean states by a formula."""
    return StandIn(nn.Identity(), process, Clean("time"), anchor, formula=formula)


def handed_out(draws: Iterable[Tensor]) -> Randn:
    """Recorded draws in order, in place of random numbers."""
    remaining = iter(draws)
    return lambda like: next(remaining).to(like)


class States:
    """Keeps the state after each step, and after what else is done to it there.

    Args:
        then: Called first.
    """

    def __init__(self, then: AfterStep | None = None) -> None:
        self.then = then
        self.kept: list[Tensor] = []

    def __call__(self, x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        """See `AfterStep`."""
        self.kept.append(x_s if self.then is None else self.then(x_s, t=t, s=s))
        return self.kept[-1]

    def fork(self) -> Self:
        """There is one record of a run."""
        raise NotImplementedError

    def stacked(self) -> Tensor:
        """`[steps,B,C,H,W]`."""
        return torch.stack(self.kept)
