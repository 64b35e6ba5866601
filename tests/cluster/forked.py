"""Runs of `lightning` in forked processes, which start in no time since everything is imported before."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import callbacks.ema
import callbacks.image_metrics
import callbacks.interruptions
import datamodules.photos
import lightning_modules.running.experiment
import lightning_modules.sr3
import tests.cluster.killer
from lightning_modules.cli import main

IMPORTED = (callbacks, datamodules, lightning_modules, tests)


def start(folder: Path, arguments: Sequence[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Starts `lightning ARGUMENTS` in `folder`, its output added to `log.txt` there; returns the process.

    Args:
        folder: Where to run.
        arguments: What follows `lightning`.
        prepare: Called in the new process first.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        prepare()
        sys.argv = ["lightning", *arguments]
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def wait(pid: int, seconds: float = 300) -> int:
    """The exit code of a process, negative for the signal that killed it.

    Raises:
        TimeoutError: it does not end; it is killed then.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} did not end in {seconds} s")


def call(folder: Path, arguments: Sequence[str], prepare: Callable[[], None] = lambda: None) -> int:
    """The exit code of `lightning ARGUMENTS`."""
    return wait(start(folder, arguments, prepare))
