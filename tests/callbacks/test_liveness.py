"""A process that hangs or dies is noticed and named by the others."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from callbacks.liveness import EXIT, Liveness

PROGRAM = """
import os, sys, time
import torch.distributed as distributed
from callbacks.liveness import Watch

rank, number = int(sys.argv[1]), int(sys.argv[2])
distributed.init_process_group("gloo", init_method="env://", rank=rank, world_size=2)
watch = Watch(rank, 2, 3.0)
watch.start()
time.sleep(2)
if rank == 1 and number:
    os.kill(os.getpid(), number)
if not number:
    time.sleep(4)
    watch.ended.set()
    time.sleep(1)
    os._exit(0)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [0, signal.SIGSTOP])
def test_a_silent_process_ends_the_others(number: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(int(number))],
            cwd=Path(__file__).parents[2],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = processes[0].communicate(timeout=120)[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == (EXIT if number else 0), said
    assert ("process 0 ends: process 1 gave no sign of life for 3 s" in said) == bool(number)


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds must be positive"):
        Liveness(0)
