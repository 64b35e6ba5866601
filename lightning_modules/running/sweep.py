"""`lightning sweep`: the runs of a sweep file, by W&B where it is logged in, else here one after another."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from lightning_modules.checkpoint import CheckpointError, newest
from lightning_modules.config import take_option
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import read_yaml
from lightning_modules.evaluation.compare import write_report
from lightning_modules.evaluation.comparison import compare
from lightning_modules.evaluation.results import NAME, Results, read_results
from lightning_modules.evaluation.tables import markdown, scores_table
from lightning_modules.running.machine import logged_in_to_wandb
from lightning_modules.running.own_process import command_line
from lightning_modules.whole_file import whole_file

ARGUMENTS = "${args}"  # where W&B puts the parameters into a sweep's command
REQUEST = "request.json"  # what a finished run was asked for
PROJECT = "diffsr"


def main(
    arguments: Sequence[str], start: Callable[[Sequence[str]], int] = lambda line: subprocess.run(line).returncode
) -> int:
    """`lightning sweep FILE [--count N]`, with further options for every run; returns the exit code.

    Args:
        arguments: What follows `lightning sweep`.
        start: Runs a command line of this machine; returns its exit code.

    Raises:
        ConfigError: the file is no sweep, or this kind of sweep needs W&B.
    """
    parser = argparse.ArgumentParser(
        prog="lightning sweep",
        description="Runs a sweep file of W&B's format, such as those of configs/sweeps. Logged in to W&B, it creates "
        "the sweep there and runs it. Otherwise (or with WANDB_MODE=offline) it runs the grid here, one run after "
        "another, and compares the results as `lightning compare` does; what is finished already is not run again. "
        "Further options are given to every run.",
    )
    parser.add_argument("file", type=Path, help="the sweep, such as configs/sweeps/learning_rate.yaml")
    parser.add_argument("--count", type=int, metavar="N", help="at most N runs (default: all)")
    asked, more = parser.parse_known_args(arguments)
    if asked.count is not None and asked.count < 1:
        raise ConfigError(f"--count: must be at least 1, got {asked.count}")

    sweep = read_yaml(asked.file)
    command, parameters = sweep.get("command"), sweep.get("parameters")
    if not isinstance(parameters, dict) or not isinstance(command, list) or ARGUMENTS not in command:
        raise ConfigError(f"{asked.file}: is no sweep: it lacks `parameters`, or a `command` with {ARGUMENTS}")
    if os.environ.get("WANDB_MODE", "online") == "online" and logged_in_to_wandb():
        return by_wandb({**sweep, "command": [*command, *more]}, asked.count, start)
    words = [str(word) for word in command if word != ARGUMENTS]
    return here(asked.file, [*without_wandb(words[1:]), *more], grid(sweep, asked.file), asked.count, start)


def by_wandb(sweep: Mapping[str, Any], count: int | None, start: Callable[[Sequence[str]], int]) -> int:
    """Creates a sweep at W&B, and runs its agent."""
    import wandb

    project = str(sweep.get("project", PROJECT))
    name = wandb.sweep(dict(sweep), project=project)
    path = "/".join([*([wandb.Api().default_entity] if wandb.Api().default_entity else []), project, name])
    limit = [] if count is None else ["--count", str(count)]
    return start([sys.executable, "-m", "wandb", "agent", *limit, path])


def grid(sweep: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """The parameters of every run.

    Raises:
        ConfigError: the sweep is no grid.
    """
    values: dict[str, list[Any]] = {}
    for name, described in sweep["parameters"].items():
        listed = described.get("values", [described["value"]] if "value" in described else None)
        if sweep.get("method", "grid") != "grid" or not isinstance(listed, list) or not listed:
            raise ConfigError(
                f"{file}: without W&B a sweep is a grid: `method: grid`, and `values` for each parameter ({name} has "
                "none); log in (wandb login) for others"
            )
        values[name] = listed
    return [dict(zip(values, cell, strict=True)) for cell in product(*values.values())]


def without_wandb(words: Sequence[str]) -> list[str]:
    """A command without the overlay of W&B."""
    options = list(words)
    configs = take_option(options, "--config")
    kept = [word for config in configs if Path(config).stem != "wandb" for word in ("--config", config)]
    return [options[0], *kept, *options[1:]]


def label(cell: Mapping[str, Any]) -> str:
    """What a run is called: "lower_bound=0.1, attention=Sobel"."""
    return ", ".join(f"{name.rpartition('.')[2]}={short(value)}" for name, value in cell.items())


def short(value: Any) -> str:
    """A value without folders and packages."""
    text = str(value)
    if text.endswith((".yaml", ".yml")):
        return Path(text).stem
    return text.rpartition(".")[2] if re.fullmatch(r"[a-z_]+(\.\w+)+", text) else text


def here(
    file: Path,
    command: Sequence[str],
    cells: Sequence[Mapping[str, Any]],
    count: int | None,
    start: Callable[[Sequence[str]], int],
) -> int:
    """Runs each cell in a process of its own, and compares the results; returns 1 if one has failed.

    Training is followed by a validation of its best checkpoint, whose results are compared; a command that tests or
    validates already leaves results.
    """
    experiment = f"sweeps/{file.stem}"
    root = Path((take_option(list(command), "--trainer.logger.init_args.save_dir") or ["runs"])[-1]) / experiment
    chosen, failed = cells[:count], []
    found: list[tuple[str | None, Results]] = []
    for number, cell in enumerate(chosen, start=1):
        name = label(cell)
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        folder = re.sub(r"[^\w.=+-]+", "_", name)
        options = [*command[1:], *(f"--{key}={value}" for key, value in cell.items())]
        results = run_cell(command[0], options, root / folder, f"{experiment}/{folder}", start)
        if results is None:
            failed.append(name)
        else:
            found.append((name, results))

    if found:
        comparison = compare(found, None, None)
        write_report(comparison, root, 4)
        print(f"\n{markdown(scores_table(comparison))}\n\n{root / 'compare.html'}")
    for name in failed:
        print(f"error: {name} has failed; the reason stands above", file=sys.stderr)
    return 1 if failed else 0


def run_cell(
    command: str, options: Sequence[str], folder: Path, experiment: str, start: Callable[[Sequence[str]], int]
) -> Results | None:
    """One run's results, as they are if it is finished already; None if it fails."""
    request = json.dumps([command, *options])
    done = folder / REQUEST
    if done.is_file() and done.read_text() == request:
        return newest_results(folder)

    for step in steps_of(command, options, folder, experiment):
        if start(command_line(step)):
            return None
    results = newest_results(folder)
    if results is not None:
        with whole_file(done) as part:
            part.write_text(request)
    return results


def steps_of(command: str, options: Sequence[str], folder: Path, experiment: str) -> Iterator[list[str]]:
    """The command lines of one run, each made when the one before has ended."""
    yield [command, *options, "--experiment", experiment]
    if command == "fit":
        try:
            checkpoint = newest(folder, "best")
        except CheckpointError:  # without validation nothing is the best
            checkpoint = newest(folder, "last")
        own = list(options)
        take_option(own, "--ckpt_path")
        yield ["validate", *own, "--ckpt_path", str(checkpoint), "--experiment", experiment]


def newest_results(folder: Path) -> Results | None:
    """The results that were written last below a folder."""
    files = sorted(folder.glob(f"*/{NAME}"), key=lambda path: path.stat().st_mtime)
    return read_results(files[-1]) if files else None
