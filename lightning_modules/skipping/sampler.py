"""SkipDiff's sampling: a coarse chain close to the clean image, then fine steps of which each image skips some."""

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
    """Says at each decision which images run, and keeps the record of the last run.

    Attributes:
        ran: Per decision, boolean `[B]`: what was run, the forced last step included.
    """

    def __init__(self) -> None:
        self.ran: list[Tensor] = []

    def begin(self, x: Tensor) -> None:
        """Forgets the last run; `x` is the state that the fine steps start from."""
        self.ran = []

    def decide(self, decision: int, x: Tensor, *, forced: bool) -> Tensor:
        """Which images run, boolean `[B]`; all of them where the step is forced."""
        run = self.choose(decision, x)
        self.ran.append(torch.ones_like(run) if forced else run)
        return self.ran[-1]

    @abstractmethod
    def choose(self, decision: int, x: Tensor) -> Tensor:
        """Which of the images with states `x [B,C,H,W]` would run, boolean `[B]`."""


class Pattern(Decider):
    """Decisions made beforehand.

    Args:
        runs: Boolean, K for every image or `[K,B]`; the last, forced one has no effect.
    """

    def __init__(self, runs: list[bool] | Tensor) -> None:
        super().__init__()
        self.runs = torch.as_tensor(runs)

    def choose(self, decision: int, x: Tensor) -> Tensor:
        """Row `decision` of the pattern."""
        return self.runs[decision].to(x.device).expand(x.shape[0])


class PolicyDecider(Decider):
    """Decisions of a policy, whose memory is carried from one to the next.

    Attributes:
        observations: Per decision, what the policy read, `[B,C,h,w]`.
        actions: Per decision, its action, int64 `[B]`; that of a forced step has no effect.
        logits: Per decision, `[B,2]`.
        values: Per decision, `[B]`.

    Args:
        policy: The policy.
        greedy: Take the likelier action instead of drawing one from the global generator.
    """

    def __init__(self, policy: SkipPolicy, greedy: bool) -> None:
        super().__init__()
        self.policy, self.greedy = policy, greedy

    def begin(self, x: Tensor) -> None:
        """See `Decider.begin`."""
        super().begin(x)
        self.memory = self.policy.initial_state(x.shape[0], x.device)
        self.observations: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.values: list[Tensor] = []

    def choose(self, decision: int, x: Tensor) -> Tensor:
        """What the policy says, recorded."""
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
        if self.greedy:
            return logits.argmax(dim=-1)
        return torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]

    def evaluation(self) -> Evaluation:
        """The policy's own view of its decisions, each `[K,B]`."""
        return Evaluation.of(torch.stack(self.logits), torch.stack(self.values), torch.stack(self.actions))


class SkipSampler(Ancestral):
    """Coarse skip approximation, then fine skip refinement (SkipDiff, AAAI 2024, paper 28195).

    The coarse chain of `coarse_steps` ancestral steps stops one step short of the clean image. From there the last
    steps of a chain of `fine_steps` lead on, one decision each: an image that skips is not evaluated, and the network
    runs on the rest of the batch only. The last step always runs. Noise is drawn for the whole batch at each step, so
    an image does not depend on what its neighbours decide.

    The released code evaluates the coarse chain's last step as well and throws it away; it is left out here.

    Args:
        decider: Says who runs.
        coarse_steps: Steps of the coarse chain, of which one fewer are taken.
        fine_steps: Steps of the chain that the fine steps belong to.
        skip: What a skip does. `respaced`: the image stays at its own noise level, and its next step starts there.
            `keep`: it stays, but its next step is taken from the level of the clock, as if it had moved. `reset`: it is
            set back to the coarse chain's result, as the released code does.
        start: Time that the coarse chain starts from, to cut off the schedule's end; None for where the process starts.
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
        """What results call it, "skip-respaced-10-100"."""
        return f"skip-{self.skip}-{self.coarse_steps}-{self.fine_steps}"

    def grid(self, process: Process) -> Tensor:
        """The times of all steps, float64, falling to 0."""
        coarse, fine = self.times(process)
        return torch.cat([coarse, fine[1:]])

    @property
    def decisions(self) -> int:
        """Number of fine steps, the forced one included."""
        return self.fine_steps // self.coarse_steps

    def evaluations(self, decider: Decider) -> Tensor:
        """How often the network ran for each image in the decider's last run, `[B]`."""
        return self.coarse_steps - 1 + torch.stack(decider.ran).sum(dim=0)

    def times(self, process: Process) -> tuple[Tensor, Tensor]:
        """Times of the coarse chain, the last one left out, and of the fine steps: float64, falling.

        Raises:
            ValueError: the process has no such levels.
        """
        try:
            coarse, fine = process.grid(self.coarse_steps)[:-1], process.grid(self.fine_steps)[-self.decisions - 1 :]
        except ValueError as error:
            raise ValueError(f"{self._does_not_fit(process)}: {error}") from error
        start = float(coarse[0]) if self.start is None else self.start
        if abs(float(coarse[-1] - fine[0])) > 1e-9 or not float(coarse[1]) < start <= float(coarse[0]):
            raise ValueError(
                f"{self._does_not_fit(process)}: the coarse chain ends at t = {float(coarse[-1]):.4g} and the fine "
                f"steps begin at t = {float(fine[0]):.4g}; start must lie in "
                f"({float(coarse[1]):.4g}, {float(coarse[0]):.4g}]"
            )
        coarse[0] = start
        return coarse, fine

    def _does_not_fit(self, process: Process) -> str:
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
        """Runs the coarse chain; what comes back takes the fine steps from its end."""
        coarse, fine = self.times(denoiser.process)
        entry = self.follow(coarse, denoiser, randn, after_step)
        return FineSteps(self.skip, fine, entry, denoiser, randn, after_step)

    def refine(self, decider: Decider, steps: "FineSteps") -> Tensor:
        """The clean state `[B,C,H,W]` to which the decider's choices lead."""
        x, level = steps.entry, steps.times[0].expand(steps.entry.shape[0])
        decider.begin(x)
        for decision in range(self.decisions):
            run = decider.decide(decision, x, forced=decision == self.decisions - 1)
            x, level = steps(x, level, decision, run)
        return x

    def visit_subsets(self, steps: "FineSteps", visit: Callable[[Sequence[bool], Tensor], None]) -> None:
        """Visits the result of every fixed set of skipped steps, with the same noise; shared beginnings are run once.

        That is 2^K - 1 evaluations of the network for K decisions, and K (K + 1) / 2 with `reset`, where only the last
        skip matters.

        Args:
            steps: The fine steps of a batch; their noise must come from `KeyedNoise`, which can be drawn again.
            visit: Called with which decisions ran, K booleans, and the clean state `[B,C,H,W]`.
        """

        def descend(steps: FineSteps, x: Tensor, level: Tensor, ran: list[bool]) -> None:
            if len(ran) == self.decisions:
                visit(ran, x)
                return

            # The last decision is forced; with `reset` a skip after a step leads where skipping all led.
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
        times: Of the steps, float64 `[K + 1]`, falling to 0.
        entry: The end of the coarse chain, `[B,C,H,W]`.
        denoiser: The estimate of the clean state.
        randn: Source of fresh noise.
        after_step: Called after each step.
    """

    skip: Skip
    times: Tensor
    entry: Tensor
    denoiser: Denoiser
    randn: Randn
    after_step: AfterStep | None

    def fork(self) -> Self:
        """The steps once more, with the same noise from here on.

        Raises:
            TypeError: the noise comes from a source that cannot be drawn again.
        """
        if not isinstance(self.randn, KeyedNoise):
            raise TypeError("only noise of KeyedNoise can be drawn again")
        after_step = None if self.after_step is None else self.after_step.fork()
        return type(self)(self.skip, self.times, self.entry, self.denoiser.fork(), self.randn.fork(), after_step)

    def __call__(self, x: Tensor, level: Tensor, decision: int, run: Tensor) -> tuple[Tensor, Tensor]:
        """One step for the images that run.

        Args:
            x: States, `[B,C,H,W]`.
            level: The time that each image stands at, `[B]`.
            decision: Index of the step.
            run: Which images run, boolean `[B]`.

        Returns:
            The next states and times.
        """
        clock = self.times[decision].expand(x.shape[0])
        t = level if self.skip == "respaced" else clock
        s = torch.where(run.to(t.device), self.times[decision + 1], t)

        x0 = self._estimate(x, t, run)
        moved = self.denoiser.process.step(x, x0=x0, anchor=self.denoiser.anchor, t=t, s=s, eta=1.0, randn=self.randn)
        if self.after_step is not None:
            moved = self.after_step(moved, t=t, s=s)

        stay = self.entry if self.skip == "reset" else x
        return torch.where(run.view(-1, 1, 1, 1), moved, stay), s

    def _estimate(self, x: Tensor, t: Tensor, run: Tensor) -> Tensor:
        """The clean states of the images that run; the others' states, unused, in the other rows."""
        rows = run.nonzero()[:, 0]
        if len(rows) == len(run):
            return self.denoiser(x, t)
        if len(rows) == 0:
            return x
        return x.index_copy(0, rows, self.denoiser.select(rows)(x[rows], t[rows.to(t.device)]))
