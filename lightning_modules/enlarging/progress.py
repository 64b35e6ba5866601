"""What enlarging will take, said before it begins, and how far it is."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_modules.enlarging.enlarger import Enlarger

LINES = 30.0  # seconds between lines where the output is no terminal


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
        images: Number of photographs.
        before: Pixels of all photographs.
        after: Pixels of all results.
        work: Pixels that the model computes, those where parts overlap several times.
        memory: Bytes of the image that takes most, besides the model.
    """

    images: int
    before: int
    after: int
    work: int
    memory: int


class Timing(NamedTuple):
    """What a tile took.

    Attributes:
        seconds: For each pixel that is computed.
        memory: Bytes at most, of the model and the tile.
    """

    seconds: float
    memory: int


def timed_tile(enlarger: Enlarger) -> Timing:
    """Enlarges one tile of noise as large as the parts of large images."""
    side = enlarger.parts.side
    tile = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    device = enlarger.method.device
    enlarger.parts(
        [tile if device.type == "cuda" else tile[:64, :64]], ["a tile"], enlarger.sampler
    )  # the first is slow

    began = perf_counter()
    enlarger.parts([tile], ["a tile"], enlarger.sampler)
    seconds = perf_counter() - began
    pixels = enlarger.parts.work(side, side)
    return Timing(seconds / pixels, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def estimate(plan: Plan, timing: Timing) -> str:
    """One line: megapixels, time, memory."""
    counted = "1 photograph" if plan.images == 1 else f"{plan.images} photographs"
    return (
        f"{counted}, {plan.before / 1e6:.3g} megapixels to {plan.after / 1e6:.3g}: about "
        f"{duration(timing.seconds * plan.work)}, {(timing.memory + plan.memory) / 2**30:.1f} GB of memory at most"
    )


def duration(seconds: float) -> str:
    """Such as "40 s", "3 min 20 s" or "2 h 5 min"."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Bar:
    """One bar over all photographs, their parts and steps; lines where the output is no terminal.

    Args:
        total: Pixels to compute.
    """

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        self.lines = not console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=self.lines,
        )
        self.total, self.done = total, 0.0
        self.task = self.bar.add_task("", total=max(total, 1))
        self.began = self.said = perf_counter()
        self.showing = ""

    def show(self, text: str) -> None:
        """What is worked on."""
        self.showing = text
        self.bar.update(self.task, description=escape(text[-40:]))
        self.advance(0)

    def advance(self, pixels: float) -> None:
        """After so many more pixels."""
        self.done += pixels
        self.bar.update(self.task, completed=min(self.done, self.total))
        now = perf_counter()
        if self.lines and now - self.said > LINES and self.done > 0:
            self.said = now
            left = (now - self.began) * max(self.total / self.done - 1, 0)
            share = min(self.done / self.total, 1.0)
            print(f"{share:.0%}, {self.showing}, {duration(left)} left", file=sys.stderr, flush=True)

    @contextmanager
    def open(self) -> Iterator["Bar"]:
        """Inside, the bar is seen."""
        with self.bar:
            yield self
