"""`lightning test`: one checkpoint on one or several test sets, and a short table beside bicubic."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_modules.config import RUNS, read_command_line, take_option
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS
from lightning_modules.evaluation.results import NAME, Results, read_results
from lightning_modules.evaluation.summary import table
from lightning_modules.running.experiment import main as run_one
from lightning_modules.running.own_process import command_line
from lightning_modules.whole_file import whole_file

ON = "--on"
TABLE = "table.md"


def in_a_process(arguments: Sequence[str]) -> int:
    """Runs a command line in a process of its own; returns its exit code."""
    return subprocess.run(command_line(arguments)).returncode


def main(arguments: Sequence[str], start: Callable[[Sequence[str]], int] = in_a_process) -> int:
    """Tests on the sets after `--on`, or once as a config says; returns the exit code.

    A set is tested in a process of its own, so that each starts anew, also where a test uses several devices. One that
    fails does not keep the others from being tested.

    Args:
        arguments: What follows `lightning test`.
        start: Runs a command line.

    Raises:
        ConfigError: there is no such set.
        CheckpointError: the checkpoint cannot be used.
    """
    options = list(arguments)
    names = take_sets(options)
    if not names or "--help" in options or "-h" in options:
        return run_one(["test", *arguments])

    sets = {name: set_options(name) for name in names}
    line = read_command_line(["test", *options])
    checkpoint = next(each for each in line.options if each.startswith("--ckpt_path=")).partition("=")[2]
    take_option(options, "--ckpt_path")
    experiment = f"tests/{run_name(Path(checkpoint))}"
    root = Path((take_option(list(options), f"--{RUNS}.save_dir") or ["runs"])[-1]).expanduser() / experiment

    found: dict[str, Results] = {}
    failed = []
    for number, (name, chosen) in enumerate(sets.items(), start=1):
        print(f"[{number}/{len(sets)}] {name}", flush=True)
        tested = Path(name).stem
        before = set(root.glob(f"{tested}/*/{NAME}"))
        where = ["--experiment", f"{experiment}/{tested}"]
        code = start(["test", f"--ckpt_path={checkpoint}", *chosen, *options, *where])
        new = set(root.glob(f"{tested}/*/{NAME}")) - before
        if code or not new:
            failed.append(name)
        else:
            found[name] = read_results(new.pop())

    if found:
        text = table(found)
        with whole_file(root / TABLE) as part:
            part.write_text(f"{checkpoint}\n\n{text}\n")
        print(f"\n{text}\n\n{root / TABLE} (beside it each set's scores and pictures)")
    if failed:
        print(f"error: not tested on {', '.join(failed)}; the reason stands above", file=sys.stderr)
    return 1 if failed else 0


def take_sets(options: list[str]) -> list[str]:
    """Removes `--on A B C` from `options`; returns the names, each once.

    Raises:
        ConfigError: there is none after `--on`.
    """
    names: list[str] = []
    while ON in options:
        start = options.index(ON)
        end = next((place for place in range(start + 1, len(options)) if options[place][:1] == "-"), len(options))
        if end == start + 1:
            raise ConfigError(f"{ON}: name the sets, such as {ON} set5 set14; there are {known_sets()}")
        names += options[start + 1 : end]
        del options[start:end]
    return list(dict.fromkeys(names))


def known_sets() -> str:
    """The names of the sets in configs/data."""
    return ", ".join(sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml")))


def set_options(name: str) -> list[str]:
    """Options of `lightning test` for a set: a config of configs/data by its name, a config file, or a folder.

    Raises:
        ConfigError: it is none of these.
    """
    config, path = CONFIGS / "data" / f"{name}.yaml", Path(name).expanduser()
    if config.is_file() or (path.is_file() and path.suffix in (".yaml", ".yml")):
        return ["--config", str(config if config.is_file() else path)]
    if path.is_dir():
        return [
            "--data",
            "datamodules.folder.Folder",
            "--data.init_args.test",
            str(path),
            "--data.init_args.val",
            "null",
        ]
    raise ConfigError(f"{ON} {name}: is no set of configs/data, no config file and no folder; there are {known_sets()}")


def run_name(checkpoint: Path) -> str:
    """What the results of a checkpoint are called: experiment, version and file, as far as they are known."""
    path = checkpoint.resolve()
    if path.parent.name != "checkpoints":
        return path.stem
    return "-".join([*(part.name for part in (path.parents[2], path.parents[1])), path.stem])
