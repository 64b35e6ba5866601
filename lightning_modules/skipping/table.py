"""What a skip policy does, and what it has to win against: everything, nothing, chance, and every fixed choice."""

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
    """`item` of each process of the run."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [item]
    items: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items


class Decisions:
    """What a policy decided on the images of one validation."""

    def __init__(self) -> None:
        self.noted: list[tuple[Tensor, Tensor]] = []  # what ran, and the entropy, [K,B]

    def note(self, decider: PolicyDecider) -> None:
        """Adds the decider's last run."""
        self.noted.append((torch.stack(decider.ran).cpu(), decider.evaluation().entropy.cpu()))

    def summary(self, plan: SkipSampler) -> dict[str, Tensor]:
        """Mean and histogram of evaluations, run rates, entropy, over all processes; forgets what was noted."""
        noted = [note for notes in from_all_processes(self.noted) for note in notes]
        self.noted = []
        ran, entropy = (torch.cat(parts, dim=1) for parts in zip(*noted, strict=True))
        evaluations = plan.coarse_steps - 1 + ran.sum(dim=0)
        found = {"evaluations": evaluations.float().mean(), "entropy": entropy[:-1].mean()}
        for count in range(plan.coarse_steps, plan.coarse_steps + plan.decisions):
            found[f"evaluations_{count}"] = (evaluations == count).float().mean()
        rates = ran[:-1].float().mean(dim=1)
        return {**found, **{f"run_rate/{k}": rate for k, rate in enumerate(rates)}}


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
        total = torch.stack([value.double().sum() for value in measured.values()]).cpu()
        sums[name] = sums[name] + total if name in sums else total

    def gather(self) -> None:
        """Adds what the other processes of a run have seen, some of which may have seen nothing."""
        seen = from_all_processes((self.images, self.columns, self.sums, self.subsets))
        self.reset()
        for images, columns, sums, subsets in seen:
            self.images += images
            self.columns = columns or self.columns
            for own, theirs in ((self.sums, sums), (self.subsets, subsets)):
                own.update({name: total + own.get(name, 0) for name, total in theirs.items()})

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
        wins = f"wins: it is paid {-ahead:.4g} more than" if ahead < 0 else "is paid as much as"
        return (
            f"The best static subset ({best}) {wins} the policy. It needs none: give "
            "lightning_modules.skipping.sampler.SkipSampler as the sampler, with the decider "
            f"lightning_modules.skipping.sampler.Pattern, runs: [{runs}]."
        )

    def print(self) -> None:
        """Prints rows and verdict."""
        table = Table("", *self.columns, title=f"Ways to skip, means over {self.images} images")
        for name, row in self.rows().items():
            table.add_row(name, *(f"{value:.4f}" for value in row.values()))
        console = Console()
        console.print(table)
        console.print(self.verdict(), markup=False, highlight=False)
