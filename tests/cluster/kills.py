"""`python -m tests.cluster.kills [N]`: one run killed N times (40) ends exactly as one that was left alone.

A quarter of the kills fall into the writing of a checkpoint, a quarter into validation, the others on random moments.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from lightning_modules import whole_file
from lightning_modules.checkpoint import CheckpointError, check, newest_whole, read_checkpoint
from lightning_modules.running.same_run import differences
from tests.cluster.forked import call, start, wait
from tests.tiny.experiments import CONFIGS, arguments

STEPS, VALIDATE = 300, 5
OPTIONS = ["--checkpoint_every", "3", "--trainer.logger.init_args.version", "version_0"]


def experiment(folder: Path, steps: int = STEPS, validate: int = VALIDATE, workers: int = 2) -> list[str]:
    """The arguments of a tiny run in `folder`."""
    overlay = {
        "trainer": {
            "max_steps": steps,
            "val_check_interval": validate,
            "limit_val_batches": 2,
        },
        "data": {"init_args": {"crop": 32, "val_crop": 32, "num_workers": workers}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(overlay))
    return ["fit", *arguments(CONFIGS / "sr3.yaml"), "--config", "run.yaml"]


def killer(where: str, step: int, number: int, **more: Any) -> list[str]:
    """Options that add a `Killer`."""
    arguments = {"where": where, "step": step, "number": int(number), **more}
    prefix = "--trainer.callbacks"
    return [
        f"{prefix}+=tests.cluster.killer.Killer",
        *(f"{prefix}.init_args.{name}={value}" for name, value in arguments.items()),
    ]


def die_while_writing(name: str, count: int, share: float) -> None:
    """Makes this process kill itself when a part of the `count`-th checkpoint called `name...` is written."""
    import torch

    written = torch.save
    seen = 0

    def save(content: Any, file: Any, *options: Any, **named: Any) -> None:
        nonlocal seen
        written(content, file, *options, **named)
        if Path(getattr(file, "name", "")).name.startswith(name):
            seen += 1
            if seen == count:
                file.flush()
                os.truncate(file.name, int(os.path.getsize(file.name) * share))
                os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save  # type: ignore[assignment]


def readable(run: Path) -> bool:
    """Whether each checkpoint of a run can be read."""
    try:
        for path in run.glob("checkpoints/*.ckpt"):
            check(path)
    except CheckpointError as error:
        print(error)
        return False
    return True


def main(kills: int) -> int:
    """Compares; the exit code is 0 if the two runs are the same."""
    chance = random.Random(0)
    top = Path(tempfile.mkdtemp(prefix="diffsr-kills-"))
    straight, killed = top / "straight", top / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    command = [*experiment(straight), *OPTIONS]
    experiment(killed)
    began = time.monotonic()
    assert call(straight, command) == 0, (straight / "log.txt").read_text()[-3000:]
    seconds = time.monotonic() - began
    print(f"straight: {STEPS} steps in {seconds:.1f} s", flush=True)

    run = killed / "runs" / "sr3" / "version_0"
    unreadable = strays = done = 0
    for number in range(kills):
        go_on = ["--ckpt_path", "last"] if list(run.glob("checkpoints/*.ckpt")) else []
        strike: list[str] = []
        prepare: Any = lambda: None  # noqa: E731
        kind = ("checkpoint", "validation", "any", "any")[number % 4]
        reached = last_step(run)
        if kind == "checkpoint":
            name, count, share = chance.choice(["last", "step="]), chance.choice([1, 1, 2]), chance.random()
            prepare = lambda n=name, c=count, s=share: die_while_writing(n, c, s)  # noqa: E731
        elif kind == "validation":
            step = (reached // VALIDATE + 1) * VALIDATE
            strike = killer("validation", step, signal.SIGKILL, batch=chance.choice([0, 1]))
        process = start(killed, [*command, *go_on, *strike], prepare)
        if kind == "any":
            time.sleep(chance.uniform(0.5, 9))
            os.kill(process, signal.SIGKILL)
        code = wait(process)
        done += code == -signal.SIGKILL
        unreadable += not readable(run)
        print(f"{number + 1}: {kind}, exit code {code}, after step {last_step(run)}", flush=True)
        if code == 0:
            break
        assert code == -signal.SIGKILL, (killed / "log.txt").read_text()[-3000:]

    go_on = ["--ckpt_path", "last"] if list(run.glob("checkpoints/*.ckpt")) else []
    assert call(killed, [*command, *go_on]) == 0, (killed / "log.txt").read_text()[-3000:]
    strays = len(list(killed.rglob(f"*{whole_file.SUFFIX}")))
    folders = [path.name for path in run.parent.iterdir() if not path.is_symlink()]
    found = differences(straight / "runs" / "sr3" / "version_0", run)
    print(
        f"{done} kills, {time.monotonic() - began:.0f} s; unreadable checkpoints {unreadable}, temporary files left "
        f"{strays}, run folders {len(folders)}; differences from the run that was left alone: {len(found)}"
    )
    print("\n".join(found[:20]) or "weights, optimizer, averages, counters and metrics.csv are equal")
    return int(bool(found or unreadable or strays or len(folders) != 1 or done < kills))


def last_step(run: Path) -> int:
    """The step of the newest checkpoint of a run; 0 without one."""
    written = list(run.glob("checkpoints/*.ckpt"))
    return read_checkpoint(newest_whole(run / "checkpoints"), weights=False)["global_step"] if written else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
