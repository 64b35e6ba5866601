"""The command `lightning`, also called `diffsr`: one table of what it can do.

A command's modules are imported when it runs, so that `lightning --help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

TRACEBACK = "DIFFSR_TRACEBACK"


class Command(NamedTuple):
    """One command.

    Attributes:
        summary: What it does, for the list.
        run: Takes what was typed after its name; what it returns is the exit code.
    """

    summary: str
    run: Callable[[Sequence[str]], Any]


def _main(module: str) -> Callable[[Sequence[str]], Any]:
    """The function `main` of a module that is imported when it is called."""
    return lambda arguments: import_module(module).main(arguments)


def _experiment(name: str) -> Callable[[Sequence[str]], Any]:
    """One of Lightning's commands, which its parser knows by name."""
    return lambda arguments: import_module("lightning_modules.running.experiment").main([name, *arguments])


def _degrading(module: str) -> Callable[[Sequence[str]], Any]:
    """As `_main`, of a module that makes low-resolution images and cannot read configs itself."""
    return lambda arguments: import_module(module).main(arguments, degradation)


def _doctor(arguments: Sequence[str]) -> Any:
    """Examines the machine where no set is given, else the sets."""
    if not arguments:
        return import_module("lightning_modules.running.machine").main()
    return import_module("datamodules.prepare.doctor").main(arguments)


def degradation(configs: Sequence[str], scale: int | None = None) -> Any:
    """The degradation that configs describe at `data.init_args.degradation`; MATLAB's bicubic where they name none.

    Args:
        configs: Their paths, later ones over earlier ones.
        scale: Instead of the configs'; 4 where neither says one.

    Returns:
        A `datamodules.degradations.degradation.Degradation`.

    Raises:
        ConfigError: there is no such config, or what it describes is no degradation.
    """
    from datamodules.degradations.bicubic import Bicubic
    from datamodules.degradations.degradation import Degradation
    from lightning_modules.config import build_part

    start = {"data": {"init_args": {"scale": 4}}}
    options = [] if scale is None else [f"--data.init_args.scale={scale}"]
    files = [Path(path) for path in configs]
    part, beside = build_part(Degradation, "data.init_args.degradation", [start, *files], options)
    return Bicubic(beside.scale) if part is None else part


COMMANDS = {
    "fit": Command("train, or go on with a run", _experiment("fit")),
    "validate": Command("score a checkpoint on its validation data", _experiment("validate")),
    "test": Command("score a checkpoint on test data", _main("lightning_modules.running.on_sets")),
    "enlarge": Command("enlarge photographs", _main("lightning_modules.enlarging.command")),
    "predict": Command("enlarge images with an experiment's trainer", _experiment("predict")),
    "plan": Command("what a training needs: memory, hours, disk", _main("lightning_modules.running.planning")),
    "pack": Command("pack images into shards to train on", _degrading("datamodules.prepare.pack")),
    "doctor": Command("examine this machine, or packed sets and folders", _doctor),
    "preview": Command("show degraded images with their recipes", _degrading("datamodules.prepare.preview")),
    "import": Command("make a checkpoint of published weights", _main("lightning_modules.published.importing")),
    "compare": Command("make tables and pictures of results", _main("lightning_modules.evaluation.compare")),
    "sweep": Command("run the trainings or tests of a sweep file", _main("lightning_modules.running.sweep")),
    "sweep-samplers": Command("compare samplers and steps", _main("lightning_modules.evaluation.sweep")),
    "score": Command("score a folder of anyone's pictures", _main("lightning_modules.evaluation.score")),
    "weights": Command("list weights by name, and get them", _main("lightning_modules.exporting.weights_command")),
    "export": Command("make a trained method a folder for others", _main("lightning_modules.exporting.export")),
    "verify": Command("see whether an export computes what it did", _main("lightning_modules.exporting.verify")),
    "push": Command("publish an export on a hub", _main("lightning_modules.exporting.push")),
    "schema": Command("write the schema by which editors complete configs", _main("lightning_modules.running.schema")),
    "replay": Command("repeat a training step whose loss was NaN", _main("lightning_modules.running.replay")),
}

HELP = f"""lightning COMMAND ...: diffusion super-resolution experiments

{"".join(f"  {name:16s}{command.summary}{chr(10)}" for name, command in COMMANDS.items())}
  train       lightning fit --config configs/quickstart.yaml      on photographs that are already here
              lightning fit --config configs/srdiff_yoda.yaml     the paper's recipe, on DIV2K; first configs/rrdb.yaml
  enlarge     lightning enlarge PHOTOS -o FOLDER                  --weights RUN/checkpoints/last.ckpt for your own
  score       lightning test --ckpt_path RUN/checkpoints/last.ckpt --on set5 set14 b100
              lightning score PICTURES TARGETS --out FOLDER           anyone's pictures, no model needed
  compare     lightning compare RESULTS RESULTS ... --out FOLDER

  change one thing   lightning fit --config configs/sr3.yaml --config configs/region/yoda.yaml \\
                         --model.init_args.region.init_args.lower_bound 0.2
  see what it is     lightning fit --config configs/srdiff.yaml --print_config
  every option       lightning COMMAND --help

Each run keeps its complete config.yaml, checkpoints, pictures and scores in runs/<experiment>/version_<n>, and `last`
beside it names the newest: `lightning fit --config` of that config.yaml repeats the run, `--ckpt_path last` continues
it. Set {TRACEBACK}=1 to see where an error comes from.
"""


def main() -> None:
    """The console script. Errors in what the user gave are one message; the exit code is not 0."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP)
        return

    if name not in COMMANDS:
        sys.exit(f"error: there is no command '{name}'; there are {', '.join(COMMANDS)} (lightning --help)")
    try:
        code = COMMANDS[name].run(arguments)
    except (ModuleNotFoundError, ValueError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        sys.exit(f"error: {error}\n(where it comes from: set {TRACEBACK}=1)")
    sys.exit(int(code or 0))


if __name__ == "__main__":
    main()
