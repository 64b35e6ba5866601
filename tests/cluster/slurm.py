"""`python -m tests.cluster.slurm`: a Slurm of two nodes on this machine, and what becomes of runs on it.

Starts munge, slurmctld and two slurmd of its own (Debian: `apt-get install slurm-wlm munge`; as root) with all their
files in a temporary folder, and stops exactly these.

- two requeues by the signal before the time limit, in mid-epoch: bit for bit the run that was left alone
- a node that dies: likewise
- the time limit itself: the job is in the queue again, with its state saved
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_modules import whole_file
from lightning_modules.running.same_run import differences
from tests.cluster.kills import experiment, last_step
from tests.tiny.experiments import CONFIGS

ROOT = CONFIGS.parent
PORT = 17000
STEPS, VALIDATE = 60, 10
CONF = """
ClusterName=diffsr
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SchedulerType=sched/backfill
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=30
KillWait=30
JobRequeue=1
InactiveLimit=0
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 RealMemory=1000
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """The daemons, and what is asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = socket.gethostname()
        conf = CONF.format(folder=folder, host=host, port=PORT, first=PORT + 1, second=PORT + 2)
        (folder / "slurm.conf").write_text(conf)
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts all daemons, and waits until the nodes are idle."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("pid-file", "log-file", "seed-file")]
        munge = ["munged", "--foreground", "--force", f"--socket={self.folder}/munge.sock", f"--key-file={key}", *files]
        self.daemon("munge", munge)
        wait_for(lambda: (self.folder / "munge.sock").exists(), 30, "munge")
        self.daemon("slurmctld", ["slurmctld", "-D", "-i"])
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self("sinfo", "-h", "-o", "%t %D").split() == ["idle", "2"], 90, "two idle nodes")

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self.daemon(node, ["slurmd", "-D", "-N", node])

    def daemon(self, name: str, command: list[str]) -> None:
        """Starts one program, its output in a file."""
        with (self.folder / f"{name}.out").open("ab") as out:
            program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or command[0]
            self.daemons[name] = subprocess.Popen(
                [program, *command[1:]], env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def __call__(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=self.folder)
        return done.stdout.strip()

    def submit(self, run: Path, *options: str, sbatch: tuple[str, ...] = ()) -> str:
        """Submits the shipped batch script for a run in a folder; returns the job."""
        script = CONFIGS / "hardware" / "slurm.sbatch"
        environment = self.environment | {
            "LIGHTNING": str(Path(sys.executable).with_name("lightning")),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MASTER_ADDR": "127.0.0.1",  # the nodes' names are known to Slurm alone
            "WANDB_MODE": "offline",
            "DIFFSR_CACHE": str(self.folder / "cache"),
        }
        command = ["sbatch", "--parsable", "--nodes=2", *sbatch, str(script), *experiment(run, STEPS, VALIDATE, 1)]
        command += ["--checkpoint_every", "5"]
        done = subprocess.run([*command, *options], env=environment, cwd=run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
        return found.group(1) if found else "GONE"

    def restarts(self, job: str) -> int:
        """How often a job was put back into the queue."""
        found = re.search(r"Restarts=(\d+)", self("scontrol", "show", "job", job))
        return int(found.group(1)) if found else -1

    def stop(self) -> None:
        """Ends what was started here."""
        for name in ("n1", "n2", "slurmctld", "munge"):
            if name in self.daemons:
                self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A running one; its jobs are cancelled in the end."""
    slurm = Cluster(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm("scancel", "--user=root")
        with suppress(TimeoutError):
            wait_for(lambda: not slurm("squeue", "-h"), 90, "empty queue")
        slurm.stop()


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits until something is the case.

    Raises:
        TimeoutError: it is not after some seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} after {seconds:g} s")
        time.sleep(0.5)


def logged(run: Path) -> int:
    """The last step in the table of a run."""
    table = run / "metrics.csv"
    lines = table.read_text().splitlines() if table.is_file() else []
    column = lines[0].split(",").index("step") if lines else 0
    steps = [line.split(",")[column] for line in lines[1:]]
    return max((int(step) for step in steps if step.isdigit()), default=-1)


def run_of(folder: Path, job: str) -> Path:
    """The folder of a job's run."""
    return folder / "runs" / "sr3" / f"slurm-{job}"


def ended(slurm: Cluster, job: str, folder: Path) -> None:
    """Waits until a job is complete."""
    wait_for(lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), 900, f"end of job {job}")
    log = (folder / f"slurm-{job}.out").read_text()
    assert slurm.state(job) == "COMPLETED", f"job {job}: {slurm.state(job)}\n{log[-4000:]}"


def report(name: str, alone: Path, run: Path, restarts: int) -> bool:
    """Prints and returns whether a run is that which was left alone."""
    found = differences(alone, run)
    folders = [path.name for path in run.parent.iterdir() if not path.is_symlink()]
    left = [path for path in run.parents[2].rglob("*") if path.name.endswith(whole_file.SUFFIX) or "hpc" in path.name]
    print(
        f"{name}: {restarts} restarts, run folders {len(folders)}, files left behind {len(left)}, "
        f"differences from the run that was left alone: {len(found)}",
        *found[:10],
        sep="\n  " if found else "",
        flush=True,
    )
    return not found and len(folders) == 1 and not left


def main() -> int:
    """The three situations; the exit code is 0 if all went well."""
    top = Path(tempfile.mkdtemp(prefix="diffsr-slurm-"))
    folders = {name: top / name for name in ("daemons", "alone", "requeued", "died", "limit")}
    for folder in folders.values():
        folder.mkdir()
    good, began = [], time.monotonic()
    with cluster(folders["daemons"]) as slurm:
        alone = slurm.submit(folders["alone"])
        ended(slurm, alone, folders["alone"])
        straight = run_of(folders["alone"], alone)
        print(f"alone: {STEPS} steps on two nodes, {time.monotonic() - began:.0f} s", flush=True)

        wandb = ["--config", str(CONFIGS / "logger" / "wandb.yaml")]
        job = slurm.submit(folders["requeued"], *wandb)
        run = run_of(folders["requeued"], job)
        for count, step in enumerate((13, 37)):
            wait_for(lambda step=step, run=run: logged(run) >= step, 600, f"step {step}")  # type: ignore[misc]
            slurm("scancel", "--signal=USR1", job)
            wait_for(lambda job=job, count=count: slurm.restarts(job) > count, 120, "requeue")  # type: ignore[misc]
            print(f"requeued after step {last_step(run)}", flush=True)
        ended(slurm, job, folders["requeued"])
        good.append(report("two requeues", straight, run, slurm.restarts(job)))
        ids = {path.name.rpartition("-")[2] for path in folders["requeued"].glob("runs/wandb/offline-run-*")}
        print(f"W&B ids: {len(ids)}, that in the run's folder: {(run / 'wandb_id.txt').read_text().strip() in ids}")
        good.append(len(ids) == 1)

        job = slurm.submit(folders["died"])
        run = run_of(folders["died"], job)
        wait_for(lambda: last_step(run) >= 15, 600, "step 15")
        slurm.daemons["n2"].kill()
        for process in processes_of(job, "n2", slurm):
            os.kill(process, signal.SIGKILL)
        slurm("scontrol", "update", "nodename=n2", "state=down", "reason=test")
        wait_for(lambda: slurm.restarts(job) > 0, 120, "restart after a node's death")
        slurm.start_node("n2")
        slurm("scontrol", "update", "nodename=n2", "state=resume")
        ended(slurm, job, folders["died"])
        good.append(report("a node that died", straight, run, slurm.restarts(job)))

        job = slurm.submit(
            folders["limit"], "--trainer.max_steps", "100000", sbatch=("--time=3", "--signal=SIGUSR1@60")
        )
        run = run_of(folders["limit"], job)
        wait_for(lambda: slurm.restarts(job) > 0, 400, "requeue at the time limit")
        step = last_step(run)
        print(f"the time limit: requeued after step {step}", flush=True)
        good.append(step > 0)
        slurm("scancel", job)
    left = [name for name, daemon in slurm.daemons.items() if daemon.poll() is None]
    print(f"{time.monotonic() - began:.0f} s; daemons still running: {len(left)}; files in {top}")
    return int(not all(good) or bool(left))


def processes_of(job: str, node: str, slurm: Cluster) -> list[int]:
    """The processes of a job on a node, by the environment that Slurm gave them."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        wanted = {
            f"SLURM_JOB_ID={job}".encode(),
            f"SLURMD_NODENAME={node}".encode(),
            b"SLURM_CONF=" + os.fsencode(slurm.environment["SLURM_CONF"]),
        }
        if wanted <= set(environment):
            found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
