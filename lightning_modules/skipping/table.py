"""Statistics of a policy's decisions, and its rewards beside those of simpler ways to skip."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, distributed

from lightning_modules.skipping.sampler import PolicyDecider, SkipSampler

POLICY, STATIC = "policy", "best static subset"
Item = TypeVar("Item")


def from_all_processes(item: Item) -> list[Item]:
    """The values that `item` has in each process of a distributed run."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [item]
    items: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items


class Decisions:
    """Records a policy's decisions on the images of one validation or test."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Tensor, Tensor]] = []  # of each batch: which steps ran, and the entropies, [K,B]

    def record(self, decider: PolicyDecider) -> None:
        """Adds the decisions of the decider's last run."""
        self.recorded.append((torch.stack(decider.ran).cpu(), decider.evaluation().entropy.cpu()))

    def summary(self, plan: SkipSampler) -> dict[str, Tensor]:
        """Mean and histogram of evaluations, run rates and entropy, over all processes; clears the record."""
        batches = [batch for recorded in from_all_processes(self.recorded) for batch in recorded]
        self.recorded = []
        ran, entropy = (torch.cat(parts, dim=1) for parts in zip(*batches, strict=True))

        evaluations = plan.coarse_steps - 1 + ran.sum(dim=0)
        found = {"evaluations": evaluations.float().mean(), "entropy": entropy[:-1].mean()}
        for count in range(plan.coarse_steps, plan.coarse_steps + plan.decisions):
            found[f"evaluations_{count}"] = (evaluations == count).float().mean()
        rates = ran[:-1].float().mean(dim=1)
        return {**found, **{f"run_rate/{k}": rate for k, rate in enumerate(rates)}}


class SkipTable:
    """Means of rewards and metrics over images, for each way to skip.

    The best fixed subset is chosen on the same images that it is compared on, which favours it.

    Attributes:
        images: Number of images that were added.
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
        """Adds scores `[B]`, by column, of the images of one way to skip."""
        self._add(self.sums, name, measured)

    def add_subset(self, ran: Sequence[bool], measured: dict[str, Tensor]) -> None:
        """Adds scores `[B]`, by column, of running the steps where `ran` is true."""
        self._add(self.subsets, "".join("1" if run else "0" for run in ran), measured)

    def _add(self, sums: dict[str, Tensor], name: str, measured: dict[str, Tensor]) -> None:
        self.columns = list(measured)
        # Sums in float64 and not means, because batches and processes have different numbers of images.
        total = torch.stack([value.cpu().double().sum() for value in measured.values()])
        sums[name] = sums[name] + total if name in sums else total

    def gather(self) -> None:
        """Merges the tables of all processes of a run; that of a process may be empty."""
        tables = from_all_processes((self.images, self.columns, self.sums, self.subsets))
        self.reset()
        for images, columns, sums, subsets in tables:
            self.images += images
            self.columns = columns or self.columns
            for own, theirs in ((self.sums, sums), (self.subsets, subsets)):
                own.update({name: total + own.get(name, 0) for name, total in theirs.items()})

    def best_subset(self) -> str:
        """The fixed subset with the highest mean reward, one digit for each step: 1 runs it, 0 skips it."""
        reward = self.columns.index("reward")
        return max(self.subsets, key=lambda name: float(self.subsets[name][reward]))

    def rows(self) -> dict[str, dict[str, float]]:
        """Means over the images, by way to skip and by column."""
        sums = {**self.sums, STATIC: self.subsets[self.best_subset()]} if self.subsets else self.sums
        means = {name: (total / self.images).tolist() for name, total in sums.items()}
        return {name: dict(zip(self.columns, values, strict=True)) for name, values in means.items()}

    def verdict(self) -> str:
        """A sentence that compares the policy's mean reward with that of the best fixed subset."""
        rows, best = self.rows(), self.best_subset()
        ahead = rows[POLICY]["reward"] - rows[STATIC]["reward"]
        runs = ", ".join("true" if run == "1" else "false" for run in best)
        if ahead > 0:
            return f"The policy beats the best static subset ({best}) by {ahead:.4g}."

        compared = f"wins: it gets {-ahead:.4g} more reward than" if ahead < 0 else "gets as much reward as"
        return (
            f"The best static subset ({best}) {compared} the policy. It needs no policy: give "
            "lightning_modules.skipping.sampler.SkipSampler as the sampler, with the decider "
            f"lightning_modules.skipping.sampler.Pattern, runs: [{runs}]."
        )

    def print(self) -> None:
        """Prints the table and the verdict."""
        table = Table("", *self.columns, title=f"Ways to skip, means over {self.images} images")
        for name, row in self.rows().items():
            table.add_row(name, *(f"{value:.4f}" for value in row.values()))
        console = Console()
        console.print(table)
        console.print(self.verdict(), markup=False, highlight=False)
