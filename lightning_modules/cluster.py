"""What a scheduler says of the job that this process belongs to."""

import hashlib
import os
from pathlib import Path
from typing import Any

from torch import distributed

INTERACTIVE = ("bash", "interactive")  # job names of a shell, in which Lightning starts the processes itself


def job() -> str | None:
    """The name of the run's folder in a job that its scheduler may start again; the same after each restart.

    None outside of one, and under torchrun without `--max-restarts`.

    Raises:
        ValueError: torchrun restarts processes on several nodes, but gave the job no name.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _torchrun() if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" else None
    if not under_slurm():
        return None
    name = "slurm-" + job_id()
    step = os.environ.get("SLURM_STEP_ID", "0")
    name += f"-{step}" if step.isdigit() and step != "0" else ""  # several `srun` in one job are several runs
    if "WANDB_SWEEP_ID" in os.environ:  # as are those of a sweep's agent
        name += f"-{os.environ.get('WANDB_RUN_ID', '')}"
    return name


def under_slurm() -> bool:
    """Whether Slurm started this process, by `srun` or in a batch script."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE


def job_id() -> str:
    """Slurm's id of the job; of one in an array, `<array>_<task>`."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def processes() -> tuple[int, int] | None:
    """Nodes, and processes on each, as `srun` started them; None outside of it."""
    if not under_slurm() or "SLURM_STEP_ID" not in os.environ or "SLURM_NTASKS" not in os.environ:
        return None
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1")))
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ["SLURM_NTASKS"]))
    return nodes, tasks // nodes


def join_restarted(backend: str) -> None:
    """Lets a process that torchrun has started again find the others; does nothing in others.

    torchrun keeps its store for all restarts, and the addresses in it that the processes of an earlier start left. The
    processes would wait for those; here each restart has names of its own.

    Args:
        backend: How the processes talk to each other: "nccl" or "gloo".
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or distributed.is_initialized():
        return
    c10d: Any = distributed  # whose stores are not in its stubs
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
    rank, address = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store = c10d.TCPStore(*address, is_master=not held and rank == 0)
    named = c10d.PrefixStore(f"restart {restart}", store)
    distributed.init_process_group(backend, store=named, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))


def leave() -> None:
    """Ends what this process shares with the others of its run; does nothing where there are none.

    gloo's threads would otherwise go on while Python shuts down. One that then lets go of a tensor ends the process
    with "terminate called without an active exception" and exit code -6, after a run that was complete.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _torchrun() -> str:
    run = os.environ["TORCHELASTIC_RUN_ID"]
    if run == "none":
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
            raise ValueError("torchrun restarts this job, but gave it no name to know its run by: add --rdzv_id NAME")
        # On one node the processes have one parent, torchrun itself, which restarts them.
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        run = hashlib.sha256(f"{boot} {os.getppid()} {started}".encode()).hexdigest()[:12]
    return f"torchrun-{run}"
