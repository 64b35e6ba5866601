"""Ends a run of several processes when one of them has died or hangs, which the others would wait for."""

import os
import signal
import sys
import threading
import time
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

EXIT = 70  # os.EX_SOFTWARE


class Liveness(Callback):
    """Every process gives a sign of life every few seconds, and ends, with an error, if another gives none.

    The signs go through the store by which the processes found each other, and not through collective operations: a
    process that waits in one for another that is gone still sees it.

    Args:
        seconds: How long a process may give no sign of life.

    Raises:
        ValueError: `seconds` is not positive.
    """

    def __init__(self, seconds: float = 40) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds must be positive, got {seconds}")
        self.seconds = seconds
        self._watch: Watch | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to watch, if there are several processes."""
        if trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized():
            self._watch = Watch(trainer.global_rank, trainer.world_size, self.seconds, trainer.strategy.launcher)
            self._watch.start()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the watch."""
        if self._watch is not None:
            self._watch.ended.set()
            self._watch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the watch; the process itself ends."""
        self.on_fit_end(trainer, pl_module)


class Watch(threading.Thread):
    """Gives signs of life and looks for those of the others.

    Args:
        rank: This process.
        processes: How many there are.
        seconds: See `Liveness`.
        launcher: Lightning's, whose other processes are ended with this one; None if a scheduler does that.
    """

    def __init__(self, rank: int, processes: int, seconds: float, launcher: Any = None) -> None:
        super().__init__(name="liveness", daemon=True)
        self.rank, self.processes, self.seconds, self.launcher = rank, processes, seconds, launcher
        self.ended = threading.Event()
        # A connection of its own, as the main one may be waiting.
        self.store = cast(Any, distributed.distributed_c10d._get_default_store()).clone()

    def run(self) -> None:
        """Until the run has ended, or another process has."""
        signs: dict[int, str] = {}
        seen = dict.fromkeys(range(self.processes), time.monotonic())
        count = 0
        while not self.ended.wait(min(self.seconds / 8, 5)):
            count += 1
            try:
                self.store.set(f"liveness/{self.rank}", str(count))
                found = self._signs()
            except Exception:  # whoever holds the store is gone
                found = {}
            now = time.monotonic()
            for rank, sign in found.items():
                if signs.get(rank) != sign:
                    signs[rank], seen[rank] = sign, now
            silent = [rank for rank in seen if rank != self.rank and now - seen[rank] > self.seconds]
            if silent and not self.ended.is_set():
                self._end(silent)

    def _signs(self) -> dict[int, str]:
        others = [rank for rank in range(self.processes) if self.store.check([f"liveness/{rank}"])]
        return {rank: self.store.get(f"liveness/{rank}").decode() for rank in others}

    def _end(self, silent: list[int]) -> None:
        names = ", ".join(f"process {rank}" for rank in silent[:8])
        print(
            f"process {self.rank} ends: {names} gave no sign of life for {self.seconds:g} s. Look into the log and at "
            "the memory of its machine; the run goes on from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        if getattr(self.launcher, "procs", None):
            self.launcher.kill(signal.SIGKILL)
        os._exit(EXIT)  # the main thread waits in a collective operation, which nothing ends
