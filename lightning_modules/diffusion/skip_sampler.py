"""SkipDiff's sampling: a coarse chain close to the clean image, then fine steps of which each image skips some."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_modules.diffusion.ppo import Judgement
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.samplers import AfterStep, Ancestral, Denoise

SKIP = 1
"""The policy's action that skips a step; 0 runs it."""

Skip = Literal["respaced", "keep", "reset"]


class Policy(Protocol):
    """What decisions are asked of; `networks.skip_policy.SkipPolicy` is one."""

    def observe(self, x: Tensor) -> Tensor:
        """What it reads of states `[B,C,H,W]`."""

    def initial_state(self, batch_size: int, device: torch.device) -> Tensor:
        """Its memory before the first decision."""

    def step(self, observation: Tensor, state: Tensor, decision: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[B,2]` of [run, skip], value `[B]`, next memory."""


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

    def __init__(self, policy: Policy, greedy: bool) -> None:
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

    def judgement(self) -> Judgement:
        """What the policy thought of its decisions, each `[K,B]`."""
        return Judgement.of(torch.stack(self.logits), torch.stack(self.values), torch.stack(self.actions))


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

    @property
    def name(self) -> str:
        """What results say of it, "skip-respaced-10-100"."""
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
            raise ValueError(f"{self._misfit(process)}: {error}") from error
        start = float(coarse[0]) if self.start is None else self.start
        if abs(float(coarse[-1] - fine[0])) > 1e-9 or not float(coarse[1]) < start <= float(coarse[0]):
            raise ValueError(
                f"{self._misfit(process)}: the coarse chain ends at t = {float(coarse[-1]):.4g} and the fine steps "
                f"begin at t = {float(fine[0]):.4g}; start must lie in ({float(coarse[1]):.4g}, {float(coarse[0]):.4g}]"
            )
        coarse[0] = start
        return coarse, fine

    def _misfit(self, process: Process) -> str:
        table = "" if process.steps is None else f" of {process.steps} steps"
        return (
            f"coarse_steps: {self.coarse_steps} and fine_steps: {self.fine_steps} do not fit the base's process "
            f"{type(process).__name__}{table}"
        )

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`."""
        step = self.prepare(denoise, process, anchor, after_step)
        return self.refine(self.decider, step)

    def prepare(self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None) -> "FineSteps":
        """Runs the coarse chain; what comes back takes the fine steps from its end."""
        entry = self.approximate(denoise, process, anchor, after_step)
        return FineSteps(self, entry, denoise, process, anchor, after_step)

    def approximate(self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None) -> Tensor:
        """The state at the end of the coarse chain, `[B,C,H,W]`."""
        coarse, _ = self.times(process)
        return self.follow(coarse, denoise, process, anchor, after_step)

    def refine(self, decider: Decider, step: "FineSteps") -> Tensor:
        """The clean state `[B,C,H,W]` to which the decider's choices lead."""
        x, level = step.entry, step.times[0].expand(step.entry.shape[0])
        decider.begin(x)
        for decision in range(self.decisions):
            run = decider.decide(decision, x, forced=decision == self.decisions - 1)
            x, level = step(x, level, decision, run)
        return x


class FineSteps:
    """The fine steps of one batch.

    Args:
        plan: The sampler.
        entry: The end of the coarse chain, `[B,C,H,W]`.
        denoise: See `Sampler.__call__`.
        process: The same.
        anchor: The same.
        after_step: The same.
    """

    def __init__(
        self,
        plan: SkipSampler,
        entry: Tensor,
        denoise: Denoise,
        process: Process,
        anchor: Tensor,
        after_step: AfterStep | None,
    ) -> None:
        self.skip, self.times = plan.skip, plan.times(process)[1].to(entry.device)
        self.entry, self.denoise, self.process = entry, denoise, process
        self.anchor, self.after_step = anchor, after_step

    def __call__(self, x: Tensor, level: Tensor, decision: int, run: Tensor) -> tuple[Tensor, Tensor]:
        """One step for the images that run.

        Args:
            x: States, `[B,C,H,W]`.
            level: The time that each image stands at, `[B]`.
            decision: Index of the step.
            run: Who runs, boolean `[B]`.

        Returns:
            The next states and times.
        """
        clock = self.times[decision].expand(x.shape[0])
        t = level if self.skip == "respaced" else clock
        s = torch.where(run, self.times[decision + 1], t)
        x0 = self._estimate(x, t, run)
        moved = self.process.step(x, x0=x0, anchor=self.anchor, t=t, s=s, eta=1)
        if self.after_step is not None:
            moved = self.after_step(moved, t=t, s=s)
        stay = self.entry if self.skip == "reset" else x
        return torch.where(run.view(-1, 1, 1, 1), moved, stay), s

    def _estimate(self, x: Tensor, t: Tensor, run: Tensor) -> Tensor:
        """The clean states of the images that run; the others' states, unused, in the other rows."""
        rows = run.nonzero()[:, 0]
        if len(rows) == len(run):
            return self.denoise(x, t)
        if len(rows) == 0:
            return x
        return x.index_copy(0, rows, self.denoise(x[rows], t[rows], rows))


class SkipBranches(SkipSampler):
    """Runs the coarse chain once and refines it under several deciders with the same noise.

    Attributes:
        states: Clean states of the last run by the decider's name, `[B,C,H,W]`.

    Args:
        deciders: By name; the last one's state is the sampler's.
        plan: The sampler whose chains are run.
    """

    def __init__(self, deciders: Mapping[str, Decider], plan: SkipSampler) -> None:
        super().__init__(plan.decider, plan.coarse_steps, plan.fine_steps, plan.skip, plan.start)
        self.deciders = deciders
        self.states: dict[str, Tensor] = {}

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`."""
        step = self.prepare(denoise, process, anchor, after_step)
        for name, decider in self.deciders.items():
            with process.rewinding():
                self.states[name] = self.refine(decider, step)
        return self.states[name]


class Finished(Ancestral):
    """Takes no step: what a method makes of a clean state that was sampled before.

    Args:
        state: The clean state, `[B,C,H,W]`.
    """

    def __init__(self, state: Tensor) -> None:
        super().__init__(steps=1)
        self.state = state

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """The state."""
        return self.state


class SubsetSearch(SkipSampler):
    """Visits the result of every fixed set of skipped steps, with the same noise; shared beginnings are run once.

    That is 2^K - 1 evaluations of the network for K decisions, and K (K + 1) / 2 with `reset`, where only the last skip
    matters.

    Args:
        visit: Called with which decisions ran, K booleans, and the clean state `[B,C,H,W]`.
        plan: The sampler whose chains are run.
    """

    def __init__(self, visit: Callable[[Sequence[bool], Tensor], None], plan: SkipSampler) -> None:
        super().__init__(plan.decider, plan.coarse_steps, plan.fine_steps, plan.skip, plan.start)
        self.visit = visit

    def __call__(
        self, denoise: Denoise, process: Process, anchor: Tensor, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`; returns the state of the image that runs every step."""
        step = self.prepare(denoise, process, anchor, after_step)
        return self._descend(step, step.entry, step.times[0].expand(step.entry.shape[0]), [])

    def _descend(self, step: FineSteps, x: Tensor, level: Tensor, ran: list[bool]) -> Tensor:
        if len(ran) == self.decisions:
            self.visit(ran, x)
            return x
        if len(ran) < self.decisions - 1 and not (self.skip == "reset" and any(ran)):
            with step.process.rewinding():
                skipped = step(x, level, len(ran), torch.zeros_like(level, dtype=torch.bool))
                self._descend(step, *skipped, [*ran, False])
        moved = step(x, level, len(ran), torch.ones_like(level, dtype=torch.bool))
        return self._descend(step, *moved, [*ran, True])
