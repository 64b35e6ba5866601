"""`python -m tests.cluster.torchrun`: two processes under torchrun, of which one is killed, or hangs.

torchrun starts both again (`--max-restarts`), and they go on in the run's folder. Then one process is stopped for good,
as a machine that hangs: the other ends and names it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.kills import experiment, killer
from tests.cluster.slurm import report
from tests.tiny.experiments import CONFIGS

STEPS, VALIDATE = 30, 10


def launch(folder: Path, *options: str, restarts: int, steps: int = STEPS) -> subprocess.Popen[bytes]:
    """Two processes of the tiny run."""
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--checkpoint_every", "4"]
    run = [str(Path(sys.executable).with_name("lightning")), *experiment(folder, steps, VALIDATE, 1), *two, *options]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(CONFIGS.parent)}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*launcher, f"--max-restarts={restarts}", *run], cwd=folder, env=environment, stdout=log, stderr=log
        )


def main() -> int:
    """The exit code is 0 if all went well."""
    top = Path(tempfile.mkdtemp(prefix="diffsr-torchrun-"))
    alone, killed, hangs = (top / name for name in ("alone", "killed", "hangs"))
    for folder in (alone, killed, hangs):
        folder.mkdir()
    began = time.monotonic()
    assert launch(alone, restarts=0).wait() == 0, (alone / "log.txt").read_text()[-3000:]
    print(f"alone: {STEPS} steps in two processes, {time.monotonic() - began:.0f} s", flush=True)

    # Struck at the first start alone: a restarted run is past that step's checkpoint, and repeats the step otherwise.
    strike = killer("train", 18, signal.SIGKILL, rank=1, once=str(killed / "struck"))
    assert launch(killed, *strike, restarts=2).wait() == 0, (killed / "log.txt").read_text()[-3000:]
    run = next((killed / "runs" / "sr3").glob("torchrun-*"))
    good = report("a worker that was killed", alone / "runs" / "sr3" / "version_0", run, 1)
    good &= (killed / "struck").is_file()

    stop = killer("train", 5, signal.SIGSTOP, rank=1)
    began = time.monotonic()
    process = launch(hangs, *stop, restarts=0, steps=1000)
    code = process.wait(600)
    log = (hangs / "log.txt").read_text()
    named = [line for line in log.splitlines() if "process 1" in line and "no sign of life" in line]
    print(f"a worker that hangs: exit code {code} after {time.monotonic() - began:.0f} s: {named[:1]}")
    return int(not (good and code != 0 and named))


if __name__ == "__main__":
    sys.exit(main())
