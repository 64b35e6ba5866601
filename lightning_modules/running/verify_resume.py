"""`lightning fit ... --verify_resume N`: N steps in one go against N steps with a kill amid them."""

import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.config_errors import ConfigError
from lightning_modules.running.own_process import command_line
from lightning_modules.running.same_run import PARTS, differences

KILL = "callbacks.interruptions.KillAfter"


def verify(arguments: Sequence[str], steps: str) -> int:
    """Trains twice into a temporary folder, and prints what of the two differs.

    One run is left alone. The other writes a checkpoint after half the steps, is killed (SIGKILL) a step later, and
    goes on from there. Their weights, optimizers, averages, counters and metrics are compared bit by bit. The random
    numbers of a step are a function of the seed and of its number, so that equal weights mean equal numbers.

    Args:
        arguments: What was typed after `fit`, without the option itself.
        steps: N.

    Returns:
        The exit code: 0 if the runs are the same.

    Raises:
        ConfigError: N is no whole number of at least 4, or a run fails.
    """
    if not steps.isdigit() or int(steps) < 4:
        raise ConfigError(f"--verify_resume: must be a whole number of steps, at least 4; got {steps}")
    half = int(steps) // 2

    with tempfile.TemporaryDirectory(prefix="diffsr-resume-") as folder:
        more = ["--trainer.max_steps", steps, "--checkpoint_every", str(half), "--experiment", "run"]
        kill = [f"--trainer.callbacks+={KILL}", f"--trainer.callbacks.init_args.step={half + 1}"]
        print(f"{steps} steps in one go ...", flush=True)
        _run(arguments, Path(folder) / "alone", more)
        print(f"{half + 1} steps, of which {half} are in the checkpoint, and a kill ...", flush=True)
        _run(arguments, Path(folder) / "halves", [*more, *kill], ends=-signal.SIGKILL)
        print("the rest ...", flush=True)
        _run(arguments, Path(folder) / "halves", [*more, "--ckpt_path", "last"])
        found = differences(*(Path(folder) / name / "run" / "version_0" for name in ("alone", "halves")))

    for part in (*PARTS, "metrics.csv"):
        places = [place for place in found if place.startswith(f"{part}: ")]
        print(f"{part:12s}{'equal' if not places else f'{len(places)} differ, such as {places[0]}'}")
    print("a resumed run is exactly the run that was left alone" if not found else "a resumed run is another run")
    return int(bool(found))


def _run(arguments: Sequence[str], runs: Path, more: Sequence[str], ends: int = 0) -> None:
    """One `lightning fit` whose folders are below `runs`."""
    logger = ["--trainer.logger", "lightning_modules.running.run_log.RunLog"]
    logger += [f"--trainer.logger.init_args.save_dir={runs}", "--trainer.logger.init_args.name=run"]
    done = subprocess.run(command_line(["fit", *arguments, *logger, *more]), capture_output=True, text=True)
    if done.returncode != ends:
        raise ConfigError(f"the run ended with exit code {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
