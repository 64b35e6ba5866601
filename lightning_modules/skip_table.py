"""The comparison that a skip policy has to win: against everything, nothing, chance, and every fixed choice."""

from collections.abc import Sequence

import torch
from lightning.pytorch.strategies import Strategy
from rich.console import Console
from rich.table import Table
from torch import Tensor

POLICY, STATIC = "policy", "best static subset"


class SkipTable:
    """Sums measurements over images, per way to skip.

    The best fixed subset is chosen on the very images that it is compared on, which favours it.

    Attributes:
        images: How many images were added.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Empties the table."""
        self.images = 0
        self.columns: list[str] = []
        self.sums: dict[str, Tensor] = {}
        self.subsets: dict[str, Tensor] = {}

    def add(self, name: str, measured: dict[str, Tensor]) -> None:
        """Adds measurements `[B]`, by column, of one way to skip."""
        self._add(self.sums, name, measured)

    def add_subset(self, ran: Sequence[bool], measured: dict[str, Tensor]) -> None:
        """Adds measurements of a fixed subset of steps."""
        self._add(self.subsets, "".join("1" if run else "0" for run in ran), measured)

    def _add(self, sums: dict[str, Tensor], name: str, measured: dict[str, Tensor]) -> None:
        self.columns = list(measured)
        total = torch.stack([value.double().sum() for value in measured.values()])
        sums[name] = sums[name] + total if name in sums else total

    def reduce(self, strategy: Strategy) -> None:
        """Adds up what the processes of a run have seen."""
        for sums in (self.sums, self.subsets):
            for name in sorted(sums):
                sums[name] = strategy.reduce(sums[name], reduce_op="sum")
        count = strategy.reduce(torch.tensor(float(self.images), device=strategy.root_device), reduce_op="sum")
        self.images = int(count)

    def best_subset(self) -> str:
        """The fixed subset of the highest reward: a 1 for each step that runs, in order."""
        reward = self.columns.index("reward")
        return max(self.subsets, key=lambda name: float(self.subsets[name][reward]))

    def rows(self) -> dict[str, dict[str, float]]:
        """Means over the images, by way to skip and column."""
        sums = {**self.sums, STATIC: self.subsets[self.best_subset()]} if self.subsets else self.sums
        means = {name: (total / self.images).tolist() for name, total in sums.items()}
        return {name: dict(zip(self.columns, values, strict=True)) for name, values in means.items()}

    def verdict(self) -> str:
        """Whether the policy is worth having."""
        rows, best = self.rows(), self.best_subset()
        ahead = rows[POLICY]["reward"] - rows[STATIC]["reward"]
        runs = ", ".join("true" if run == "1" else "false" for run in best)
        if ahead > 0:
            return f"The policy beats the best static subset ({best}) by {ahead:.4g}."
        return (
            f"The best static subset wins: running {best} for every image is paid {-ahead:.4g} more than the policy. "
            "Without one it is sampler lightning_modules.diffusion.skip_sampler.SkipSampler with decider "
            f"lightning_modules.diffusion.skip_sampler.Pattern, runs: [{runs}]."
        )

    def print(self) -> None:
        """Prints rows and verdict."""
        table = Table("", *self.columns, title=f"Ways to skip, means over {self.images} images")
        for name, row in self.rows().items():
            table.add_row(name, *(f"{value:.4f}" for value in row.values()))
        console = Console()
        console.print(table)
        console.print(self.verdict())
