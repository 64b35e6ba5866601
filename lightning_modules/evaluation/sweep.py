"""`lightning sweep-samplers`: tests checkpoints with every sampler and number of steps, and compares them."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_modules.base import DiffusionModule
from lightning_modules.config import build_part, load_method
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.evaluation.compare import write_report
from lightning_modules.evaluation.comparison import compare
from lightning_modules.evaluation.provenance import code, file_digest, sha256_of
from lightning_modules.evaluation.results import NAME, read_results
from lightning_modules.evaluation.tables import markdown, scores_table
from lightning_modules.running.experiment import quieten, run
from lightning_modules.weights import MODEL, resolve

FOLDER = CONFIGS / "sampler"
NOT_SWEPT = "skip_policy"  # belongs to the process that it was trained on
REQUEST = "request.json"


@dataclass(frozen=True)
class Cell:
    """One test of the matrix.

    Attributes:
        label: Its row in the table, such as "srdiff, ddim-10".
        arguments: Of `lightning test`, without where results go.
        impossible: Why it cannot be; None where it can.
    """

    label: str
    arguments: tuple[str, ...]
    impossible: str | None


def main(arguments: Sequence[str]) -> None:
    """`lightning sweep-samplers [NAME=]CKPT ... --out FOLDER`, with any options of `lightning test`.

    Args:
        arguments: Everything after `lightning sweep-samplers`.

    Raises:
        ConfigError: a sampler or checkpoint cannot be used, or two checkpoints have one name.
        CheckpointError: a checkpoint cannot be used.
    """
    quieten()
    asked, options = _parser().parse_known_args(arguments)
    samplers = asked.samplers.split(",")
    unknown = sorted(set(samplers) - set(names()))
    if unknown:
        raise ConfigError(f"--samplers {', '.join(unknown)}: there are {', '.join(names())} (configs/sampler)")

    cells = [
        cell
        for name, path in named_checkpoints(asked.checkpoints).items()
        for cell in cells_of(name, path, samplers, [int(steps) for steps in asked.steps.split(",")], options)
    ]
    found = []
    for number, cell in enumerate(cells, start=1):
        print(f"[{number}/{len(cells)}] {cell.label}: {cell.impossible or 'tested'}", flush=True)
        if cell.impossible is None:
            found.append((cell.label, read_results(_tested(cell, asked.out))))
    impossible = [f"{cell.label} cannot be: {cell.impossible}" for cell in cells if cell.impossible is not None]
    if not found:
        raise ConfigError("none of these pairs can be:\n  " + "\n  ".join(impossible))

    comparison = compare(found, asked.scores.split(",") if asked.scores else None, None)
    comparison = replace(comparison, notes=[*comparison.notes, *impossible])
    write_report(comparison, asked.out, asked.images)
    print(markdown(scores_table(comparison)))
    for note in impossible:
        print(note)
    print(asked.out / "compare.html")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning sweep-samplers",
        description="Tests checkpoints with every sampler and number of steps and compares the results as `lightning "
        "compare` does, with quality against time. Further options are those of `lightning test`, such as --config "
        "configs/data/set5.yaml. What was tested already is not tested again.",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="[NAME=]CKPT")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--samplers", default=",".join(names()), metavar="A,B,...", help="default: %(default)s")
    parser.add_argument("--steps", default="5,10,20,50", metavar="N,N,...", help="default: %(default)s")
    parser.add_argument("--scores", metavar="A,B,...", help="columns (default: the protocol's, or all)")
    parser.add_argument("--images", type=int, default=4, help="how many images are shown (default: 4)")
    return parser


def names() -> list[str]:
    """The samplers that can be swept: those of configs/sampler."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != NOT_SWEPT)


def named_checkpoints(listed: Sequence[str]) -> dict[str, Path]:
    """Checkpoints by name, by default the experiment's or the file's.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[str, Path] = {}
    for text in listed:
        name, equals, given = text.partition("=")
        path = resolve(given if equals and not Path(text).exists() else text)
        if not equals or Path(text).exists():
            in_run = path.parent.name == "checkpoints" and path.parent.parent.name.startswith("version_")
            name = path.parents[2].name if in_run else path.parent.name if path.name == MODEL else path.stem
        if name in found:
            raise ConfigError(f"{found[name]} and {path} are both called {name!r}: name them, A=FILE B=FILE")
        found[name] = path
    return found


def cells_of(
    name: str, path: Path, samplers: Sequence[str], steps: Sequence[int], options: Sequence[str]
) -> Iterator[Cell]:
    """The tests of one checkpoint, the impossible ones with the reason.

    Raises:
        ConfigError: the checkpoint holds a method that does not sample.
    """
    method = load_method(path)
    if not isinstance(method, DiffusionModule):
        raise ConfigError(f"{path}: holds a {type(method).__name__}, which takes no sampler")
    for sampler in samplers:
        for count in steps:
            overlay = FOLDER / f"{sampler}.yaml"
            setting = f"--model.init_args.sampler.init_args.steps={count}"
            part, _ = build_part(Sampler, "model.init_args.sampler", [overlay], [setting])
            label, reason = _fits(part, method.process)
            arguments = (f"--ckpt_path={path}", "--config", str(overlay), setting, *options)
            yield Cell(f"{name}, {label or f'{sampler}-{count}'}", arguments, reason)


def _fits(sampler: Sampler, process: Process) -> tuple[str | None, str | None]:
    """The sampler's name with a process, and why they do not fit."""
    try:
        sampler.grid(process)
        return sampler.name(process), None
    except (TypeError, ValueError) as error:
        return None, str(error)


def _tested(cell: Cell, out: Path) -> Path:
    """The folder of a cell's results, after the test where it is not there yet."""
    folder = out / "tests" / cell.label.replace(", ", "_").replace("/", "_")
    request = _request(cell)
    if (folder / NAME).is_file() and _read(folder / REQUEST) == request:
        return folder
    where = ["--trainer.logger.init_args.save_dir", str(folder.parent), "--trainer.logger.init_args.version", ""]
    run(["test", *cell.arguments, "--experiment", folder.name, *where])
    (folder / REQUEST).write_text(json.dumps(request) + "\n")
    return folder


def _request(cell: Cell) -> dict[str, Any]:
    """What a cell's results depend on, as far as it can be told without testing."""
    checkpoint = next(each for each in cell.arguments if each.startswith("--ckpt_path=")).partition("=")[2]
    files = [Path(each) for each in cell.arguments if each.endswith((".yaml", ".yml")) and Path(each).is_file()]
    return {
        "arguments": list(cell.arguments),
        "configs": sha256_of({str(path): path.read_text() for path in files}),
        "checkpoint": file_digest(checkpoint),
        "code": code()["sources_sha256"],
    }


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
