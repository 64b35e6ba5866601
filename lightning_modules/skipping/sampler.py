"""SkipDiff's sampler: a coarse chain almost to the clean image, then fine steps of which each image skips some."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import KeyedNoise, Randn
from lightning_modules.diffusion.samplers import AfterStep, Ancestral
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.ppo import Evaluation

SKIP = 1
"""The policy's action that skips a step; 0 runs it."""

Skip = Literal["respaced", "keep", "reset"]


class Decider(ABC):
    """Decides at each fine step which images run it, and records the decisions of the last run.

    Attributes:
        ran: For each decision, which images ran the step, boolean `[B]`; all of them in the forced last step.
    """

    def __init__(self) -> None:
        self.ran: list[Tensor] = []

    def begin(self, x: Tensor) -> None:
        """Clears the record; `x`, `[B,C,H,W]`, are the states that the fine steps start from."""
        self.ran = []

    def decide(self, decision: int, x: Tensor, *, forced: bool) -> Tensor:
        """Which images run, boolean `[B]`: all of them if `forced`. Records the decision."""
        run = self.choose(decision, x)
        self.ran.append(torch.ones_like(run) if forced else run)
        return self.ran[-1]

    @abstractmethod
    def choose(self, decision: int, x: Tensor) -> Tensor:
        """Which of the images with states `x [B,C,H,W]` run if the step is not forced, boolean `[B]`."""


class Pattern(Decider):
    """Fixed decisions.

    Args:
        runs: Whether each step is run: K booleans for all images, or boolean `[K,B]`. The last has no effect, because
            the last step is forced.
    """

    def __init__(self, runs: list[bool] | Tensor) -> None:
        super().__init__()
        self.runs = torch.as_tensor(runs)

    def choose(self, decision: int, x: Tensor) -> Tensor:
        """Entry `decision` of the pattern, `[B]`."""
        return self.runs[decision].to(x.device).expand(x.shape[0])


class PolicyDecider(Decider):
    """Decisions of a policy, whose recurrent state is carried from one decision to the next.

    Attributes:
        observations: For each decision, the policy's input, `[B,C,h,w]`.
        actions: For each decision, the action, int64 `[B]`; that of a forced step has no effect.
        logits: For each decision, `[B,2]`.
        values: For each decision, `[B]`.

    Args:
        policy: The policy.
        keys: A key for each image, which seeds the draws of its actions; None takes the more likely actions.
    """

    def __init__(self, policy: SkipPolicy, keys: Sequence[str] | None = None) -> None:
        super().__init__()
        self.policy, self.keys = policy, keys

    def begin(self, x: Tensor) -> None:
        """See `Decider.begin`."""
        super().begin(x)
        self.memory = self.policy.initial_state(x.shape[0], x.device)
        self.draws = None if self.keys is None else KeyedNoise.of(self.keys, "decisions", x.device)
        self.observations: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.values: list[Tensor] = []

    def choose(self, decision: int, x: Tensor) -> Tensor:
        """The policy's decision; records its input, action, logits and value."""
        observation = self.policy.observe(x)
        logits, value, self.memory = self.policy.step(observation, self.memory, decision)
        action = self.act(decision, logits)
        self.observations.append(observation)
        self.actions.append(action)
        self.logits.append(logits)
        self.values.append(value)
        return action != SKIP

    def act(self, decision: int, logits: Tensor) -> Tensor:
        """The action for logits `[B,2]`, int64 `[B]`."""
        if self.draws is None:
            return logits.argmax(dim=-1)
        uniform = torch.special.ndtr(self.draws(torch.empty(len(logits), device=logits.device)))
        skips: Tensor = uniform < logits.softmax(dim=-1)[:, SKIP]
        return skips.long()

    def evaluation(self) -> Evaluation:
        """Log-probabilities, entropies and values of the recorded decisions, `[K,B]` each."""
        return Evaluation.of(torch.stack(self.logits), torch.stack(self.values), torch.stack(self.actions))


class SkipSampler(Ancestral):
    """Coarse skip approximation, then fine skip refinement (SkipDiff, AAAI 2024, paper 28195).

    The coarse chain takes all but the last of `coarse_steps` ancestral steps. From there the last steps of a chain of
    `fine_steps` are taken, with one decision before each. The network is evaluated only on the images that run the
    step. The last step is always run. Noise is drawn for the whole batch at each step, so an image does not depend on
    the decisions for other images.

    The released code also evaluates the last step of the coarse chain and discards the result; here it is left out.

    Args:
        decider: Decides which images run a step.
        coarse_steps: Number of steps of the coarse chain, of which the last is not taken.
        fine_steps: Number of steps of the chain that the fine steps are the end of.
        skip: What happens to an image that skips. `respaced`: it stays at its noise level, and its next step starts at
            that level. `keep`: it stays, but its next step assumes the noise level of the schedule, as if it had run.
            `reset`: it is set back to the end of the coarse chain, as in the released code.
        start: Time at which the coarse chain starts, to leave out the noisiest part of the schedule; None for the start
            of the process.

    Raises:
        ValueError: `fine_steps` is not a multiple of `coarse_steps`, or `coarse_steps` is below 2.
    """

    def __init__(
        self,
        decider: Decider,
        coarse_steps: int = 10,
        fine_steps: int = 100,
        skip: Skip = "respaced",
        start: float | None = None,
    ) -> None:
        super().__init__(fine_steps)
        if coarse_steps < 2 or fine_steps % coarse_steps:
            raise ValueError(f"fine_steps must be a multiple of coarse_steps >= 2, got {fine_steps} and {coarse_steps}")
        self.decider, self.coarse_steps, self.fine_steps = decider, coarse_steps, fine_steps
        self.skip, self.start = skip, start

    def name(self, process: Process) -> str:
        """See `Sampler.name`: such as "skip-respaced-10-100"."""
        return f"skip-{self.skip}-{self.coarse_steps}-{self.fine_steps}"

    def grid(self, process: Process) -> Tensor:
        """Times of the coarse and the fine steps, float64, falling to 0."""
        coarse, fine = self.times(process)
        return torch.cat([coarse, fine[1:]])

    @property
    def decisions(self) -> int:
        """Number K of fine steps, including the forced last one."""
        return self.fine_steps // self.coarse_steps

    def evaluations(self, decider: Decider) -> Tensor:
        """Number of network evaluations for each image in the decider's last run, `[B]`."""
        return self.coarse_steps - 1 + torch.stack(decider.ran).sum(dim=0)

    def times(self, process: Process) -> tuple[Tensor, Tensor]:
        """Times of the coarse chain without its last step, and of the fine steps: float64, falling.

        Raises:
            ValueError: the process cannot be sampled in these numbers of steps, the fine steps do not start where the
                coarse chain ends, or `start` is not within the first coarse step.
        """
        try:
            coarse, fine = process.grid(self.coarse_steps)[:-1], process.grid(self.fine_steps)[-self.decisions - 1 :]
        except ValueError as error:
            raise ValueError(f"{self._mismatch(process)}: {error}") from error

        start = float(coarse[0]) if self.start is None else self.start
        if abs(float(coarse[-1] - fine[0])) > 1e-9 or not float(coarse[1]) < start <= float(coarse[0]):
            raise ValueError(
                f"{self._mismatch(process)}: the coarse chain ends at t = {float(coarse[-1]):.4g} and the fine "
                f"steps begin at t = {float(fine[0]):.4g}; start must lie in "
                f"({float(coarse[1]):.4g}, {float(coarse[0]):.4g}]"
            )

        coarse[0] = start
        return coarse, fine

    def _mismatch(self, process: Process) -> str:
        """The beginning of an error message: these numbers of steps do not fit the process."""
        table = "" if process.steps is None else f" of {process.steps} steps"
        return (
            f"coarse_steps: {self.coarse_steps} and fine_steps: {self.fine_steps} do not fit the base's process "
            f"{type(process).__name__}{table}"
        )

    def __call__(
        self, denoiser: Denoiser, randn: Randn = torch.randn_like, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`."""
        return self.refine(self.decider, self.prepare(denoiser, randn, after_step))

    def prepare(self, denoiser: Denoiser, randn: Randn, after_step: AfterStep | None) -> "FineSteps":
        """Runs the coarse chain; returns the fine steps that start at its end."""
        coarse, fine = self.times(denoiser.process)
        entry = self.follow(coarse, denoiser, randn, after_step)
        return FineSteps(self.skip, fine, entry, denoiser, randn, after_step)

    def refine(self, decider: Decider, steps: "FineSteps") -> Tensor:
        """Takes the fine steps as `decider` chooses; returns the clean state `[B,C,H,W]`."""
        x, level = steps.entry, steps.times[0].expand(steps.entry.shape[0])
        decider.begin(x)
        for decision in range(self.decisions):
            run = decider.decide(decision, x, forced=decision == self.decisions - 1)
            x, level = steps(x, level, decision, run)
        return x

    def visit_subsets(self, steps: "FineSteps", visit: Callable[[Sequence[bool], Tensor], None]) -> None:
        """Samples with every fixed subset of the fine steps and the same noise; common first steps are run once.

        Takes 2^K - 1 evaluations of the network for K decisions. With `reset`, where only the last skip matters, it
        takes K (K + 1) / 2.

        Args:
            steps: The fine steps of a batch. Their noise must come from `KeyedNoise`, which can be drawn again.
            visit: Called with K booleans, whether each step was run, and the clean state `[B,C,H,W]`.
        """

        def descend(steps: FineSteps, x: Tensor, level: Tensor, ran: list[bool]) -> None:
            if len(ran) == self.decisions:
                visit(ran, x)
                return

            # The last step is forced. With `reset`, a skip after a step returns to the state of skipping all so far.
            if len(ran) < self.decisions - 1 and not (self.skip == "reset" and any(ran)):
                forked = steps.fork()
                skipped = forked(x, level, len(ran), torch.zeros_like(level, dtype=torch.bool))
                descend(forked, *skipped, [*ran, False])

            moved = steps(x, level, len(ran), torch.ones_like(level, dtype=torch.bool))
            descend(steps, *moved, [*ran, True])

        descend(steps, steps.entry, steps.times[0].expand(steps.entry.shape[0]), [])


@dataclass(frozen=True)
class FineSteps:
    """The fine steps of one batch.

    Attributes:
        skip: See `SkipSampler`.
        times: Times of the steps, float64 `[K + 1]`, falling to 0.
        entry: The states at the end of the coarse chain, `[B,C,H,W]`.
        denoiser: Gives the estimate of the clean state.
        randn: Source of fresh noise.
        after_step: Called after each step, see `AfterStep`.
    """

    skip: Skip
    times: Tensor
    entry: Tensor
    denoiser: Denoiser
    randn: Randn
    after_step: AfterStep | None

    def fork(self) -> Self:
        """A copy that draws the same noise from here on, for another run of the same steps.

        Raises:
            TypeError: the noise does not come from `KeyedNoise`.
        """
        if not isinstance(self.randn, KeyedNoise):
            raise TypeError("only noise of KeyedNoise can be drawn again")
        after_step = None if self.after_step is None else self.after_step.fork()
        return type(self)(self.skip, self.times, self.entry, self.denoiser.fork(), self.randn.fork(), after_step)

    def __call__(self, x: Tensor, level: Tensor, decision: int, run: Tensor) -> tuple[Tensor, Tensor]:
        """One step for the images that run.

        Args:
            x: States, `[B,C,H,W]`.
            level: Time of each state, `[B]`.
            decision: Index of the step.
            run: Which images run, boolean `[B]`.

        Returns:
            The next states, `[B,C,H,W]`, and their times, `[B]`.
        """
        scheduled = self.times[decision].expand(x.shape[0])
        t = level if self.skip == "respaced" else scheduled
        s = torch.where(run.to(t.device), self.times[decision + 1], t)

        # Noise is drawn for all images, so that an image's noise does not depend on who else runs.
        x0 = self._estimate(x, t, run)
        moved = self.denoiser.process.step(x, x0=x0, anchor=self.denoiser.anchor, t=t, s=s, eta=1.0, randn=self.randn)
        if self.after_step is not None:
            moved = self.after_step(moved, t=t, s=s)

        stay = self.entry if self.skip == "reset" else x
        return torch.where(run.view(-1, 1, 1, 1), moved, stay), s

    def _estimate(self, x: Tensor, t: Tensor, run: Tensor) -> Tensor:
        """Estimates `[B,C,H,W]` of the clean states of the images that run; the other rows are unused."""
        rows = run.nonzero()[:, 0]
        if len(rows) == len(run):
            return self.denoiser(x, t)
        if len(rows) == 0:
            return x
        return x.index_copy(0, rows, self.denoiser.select(rows)(x[rows], t[rows.to(t.device)]))
