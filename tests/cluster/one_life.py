"""`python -m tests.cluster.one_life FOLDER`: one run that is interrupted in five ways, and one that is left alone.

Prints what became of each start as JSON. The interrupted one is told that it is a Slurm job, so that each start goes on
by itself, and finds a `scontrol` that only writes down what it was asked.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.cluster.forked import call
from tests.cluster.kills import die_while_writing, experiment, killer, last_step

SLURM = {"JOB_ID": 7, "STEP_ID": 0, "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1, "PROCID": 0, "LOCALID": 0}
SLURM |= {"NODEID": 0, "STEP_NUM_NODES": 1, "STEP_NUM_TASKS": 1}
STEPS, VALIDATE, EVERY = 8, 4, ["--checkpoint_every", "2"]


def as_slurm_job(folder: Path) -> None:
    """Gives this process the environment of a Slurm task."""
    os.environ |= {f"SLURM_{name}": str(value) for name, value in SLURM.items()}
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"


def fake_scontrol(folder: Path) -> None:
    """A `scontrol` in `folder/bin` that adds its arguments to `folder/scontrol.txt`."""
    (folder / "bin").mkdir()
    script = folder / "bin" / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.txt\n')
    script.chmod(0o755)


def main(top: Path) -> None:
    """Runs both lives."""
    alone, folder = top / "alone", top / "interrupted"
    for each in (alone, folder):
        each.mkdir(parents=True)
    command = [*experiment(alone, STEPS, VALIDATE), *EVERY]
    experiment(folder, STEPS, VALIDATE)
    fake_scontrol(folder)
    found: dict[str, Any] = {"alone": call(alone, command)}

    def start(name: str, strike: list[str], dies: tuple[str, int, float] | None = None) -> None:
        def prepare() -> None:
            as_slurm_job(folder)
            if dies is not None:
                die_while_writing(*dies)

        code = call(folder, [*command, *strike], prepare)
        found[name] = {"code": code, "step": last_step(folder / "runs" / "sr3" / "slurm-7")}

    start("terminated", killer("train", 2, signal.SIGTERM))
    start("error in validation", killer("validation", 4, 0, batch=1))
    start("requeued", killer("train", 4, signal.SIGUSR1, group=True))
    start("killed while writing", [], ("last", 2, 0.5))
    start("killed in the last validation", killer("validation", 8, signal.SIGKILL, batch=1))
    start("ended", [])
    (top / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
