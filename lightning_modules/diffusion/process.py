"""The forward process and the one reverse step that every method here shares."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def expand(value: Tensor, like: Tensor) -> Tensor:
    """One number per sample, `[B]`, as a coefficient of states: `like`'s device, at least float32, `[B,1,1,1]`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return value.to(device=like.device, dtype=dtype).view(-1, *[1] * (like.dim() - 1))


class Process(nn.Module, ABC):
    """`x_t = mean(x0, anchor, t) + std(t) * noise`, with a mean that is linear in `(x0, anchor)` and `std(0) = 0`.

    The clock `t` is float64 `[B]` in [0, 1]; 0 is the clean state. `s` is always the smaller, next time. `anchor` is
    the degraded image in state space. States are `[B,C,H,W]`; coefficients are computed in float64 and applied in
    float32 or wider.
    """

    steps: int | None = None  # length of the training table; None where the clock is continuous

    def __init__(self) -> None:
        super().__init__()
        self._generators: Sequence[torch.Generator] | None = None

    @abstractmethod
    def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """Mean of the state at time `t`, `[B,C,H,W]`."""

    @abstractmethod
    def std(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in the state, `[B]`."""

    @abstractmethod
    def fresh_std(self, t: Tensor, s: Tensor) -> Tensor:
        """Standard deviation of the new noise in a step from `t` to `s` at `eta = 1`, `[B]`; at most `std(s)`."""

    def kept_std(self, t: Tensor, s: Tensor) -> Tensor:
        """Standard deviation of the old noise that is left at `s` by that step, `[B]`: `fresh_std^2 + it^2 = std(s)^2`.

        A process whose steps keep next to nothing states it in closed form, for the difference of squares cancels.
        """
        return (self.std(s) ** 2 - self.fresh_std(t, s) ** 2).clamp(min=0).sqrt()

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """Times of a run of `steps` steps: float64 `[steps + 1]`, falling to 0.

        Raises:
            ValueError: the process has no such number of steps.
        """

    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of `x0` in the mean, `[B]`, for processes where it is a number.

        Raises:
            TypeError: the mean applies an operator to `x0`.
        """
        raise TypeError(
            f"the mean of {type(self).__name__} is no multiple of x0, which Epsilon, label: level, DPMSolverPlusPlus, "
            "Heun and karras spacing rely on; choose Preconditioned or Clean, and sample with Ancestral, DDIM, EDMHeun "
            "or RelayHeun"
        )

    def added_std(self, t: Tensor, s: Tensor) -> Tensor:
        """Standard deviation of the noise that is really added at `eta = 1`, `[B]`: by default `fresh_std`."""
        return self.fresh_std(t, s)

    def tick(self, t: Tensor) -> Tensor:
        """The time of the discrete step that `t` lies in; YODA's mask and step-indexed labels go by it."""
        return t

    def sample_t(self, n: int, device: torch.device) -> Tensor:
        """Training times, float64 `[n]`, uniform on (0, 1]."""
        return 1 - torch.rand(n, dtype=torch.float64, device=device)

    def noise(self, like: Tensor) -> Tensor:
        """Noise of unit variance in the shape of `like`, from the global generator unless under `drawing_from`.

        Raises:
            ValueError: under `drawing_from`, there is not one generator per sample.
        """
        if self._generators is None:
            return torch.randn_like(like)
        if len(self._generators) != like.shape[0]:
            raise ValueError(f"{len(self._generators)} generators, but noise is asked for a batch of {like.shape[0]}")
        samples = [
            torch.randn(like.shape[1:], generator=generator, device=like.device, dtype=like.dtype)
            for generator in self._generators
        ]
        return torch.stack(samples)

    @contextlib.contextmanager
    def drawing_from(self, generators: Sequence[torch.Generator]) -> Iterator[None]:
        """Inside, `noise` of sample i comes from `generators[i]` alone, whatever the batch, the rank or the worker."""
        outside, self._generators = self._generators, generators
        try:
            yield
        finally:
            self._generators = outside

    @contextlib.contextmanager
    def rewinding(self) -> Iterator[None]:
        """Inside, noise goes on as usual; afterwards the generators stand where they stood, for a second run.

        Raises:
            ValueError: not under `drawing_from`.
        """
        if self._generators is None:
            raise ValueError("only noise that is drawn from given generators can be drawn again: use drawing_from")
        states = [generator.get_state() for generator in self._generators]
        try:
            yield
        finally:
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)

    def diffuse(self, *, x0: Tensor, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A state at time `t` (the papers' q-sample), `[B,C,H,W]`."""
        return self.mean(x0=x0, anchor=anchor, t=t) + expand(self.std(t), x0) * noise

    def start(self, *, anchor: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The state that sampling starts from: the anchor diffused to `t`."""
        return self.diffuse(x0=anchor, anchor=anchor, t=t, noise=noise)

    def step(self, x_t: Tensor, *, x0: Tensor, anchor: Tensor, t: Tensor, s: Tensor, eta: float) -> Tensor:
        """The reverse step from `t` to `s`, given the denoiser's estimate `x0`.

        `x_s = mean(x0, anchor, s) + sqrt(std(s)^2 - tau^2) * noise_hat + tau * noise`, `tau = eta * fresh_std(t, s)`,
        and `noise_hat` the noise that `x0` leaves in `x_t`. `eta = 1` is the Markov posterior (Eq. 7 of DDPM,
        arXiv:2006.11239), `eta = 0` is deterministic (Eq. 12 of DDIM, arXiv:2010.02502), both between any two times.
        Samples with `s == t` are returned untouched.
        """
        std_t = self.std(t)
        kept = (self.kept_std(t, s) ** 2 + (1 - eta**2) * self.fresh_std(t, s) ** 2).clamp(min=0).sqrt()
        kept = kept / torch.where(std_t > 0, std_t, 1.0)
        remaining = x_t - self.mean(x0=x0, anchor=anchor, t=t)
        x_s = self.mean(x0=x0, anchor=anchor, t=s) + expand(kept, x_t) * remaining
        if eta > 0:
            x_s = x_s + expand(eta * self.added_std(t, s), x_t) * self.noise(x_t)
        return torch.where(expand(s == t, x_t) > 0, x_t, x_s)


class Tabulated(Process):
    """A process that was defined on a table of T steps.

    The clock is the index into the table divided by T. Entry 0 is the clean state, entry k what the papers index k - 1.

    Args:
        steps: T.
    """

    steps: int

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.tables: dict[str, Tensor] = {}  # float64 [T + 1]; no buffers, which a precision plugin would round
        # By table and tensor of times, during a step; the tensor is kept, or another could take over its id.
        self._looked_up: dict[tuple[str, int], tuple[Tensor, Tensor]] | None = None

    def lookup(self, name: str, t: Tensor) -> Tensor:
        """A table's value at `t`, float64 `[B]`; linear between two entries."""
        if self._looked_up is None:
            return self._interpolate(name, t)
        key = (name, id(t))
        if key not in self._looked_up:
            self._looked_up[key] = t, self._interpolate(name, t)
        return self._looked_up[key][1]

    def _interpolate(self, name: str, t: Tensor) -> Tensor:
        index = t.double() * self.steps
        below = index.long().clamp(0, self.steps - 1)
        table = self.tables[name] = self.tables[name].to(t.device)
        return torch.lerp(table[below], table[below + 1], (index - below).clamp(0, 1))

    def step(self, x_t: Tensor, *, x0: Tensor, anchor: Tensor, t: Tensor, s: Tensor, eta: float) -> Tensor:
        """See `Process.step`. A step asks for the same values many times over; each is looked up once."""
        self._looked_up = {}
        try:
            return super().step(x_t, x0=x0, anchor=anchor, t=t, s=s, eta=eta)
        finally:
            self._looked_up = None

    def tick(self, t: Tensor) -> Tensor:
        """The table entry at or above `t`, as a time."""
        return (t * self.steps - 1e-9).ceil() / self.steps

    def sample_t(self, n: int, device: torch.device) -> Tensor:
        """Table entries 1..T, uniform."""
        return torch.randint(1, self.steps + 1, (n,), device=device).double() / self.steps

    def grid(self, steps: int) -> Tensor:
        """Evenly spread table entries, from the last to the clean one.

        Raises:
            ValueError: `steps` is not within 1..T.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(
                f"this process was defined with {self.steps} steps; it cannot be sampled with {steps}: set the "
                f"sampler's steps to 1 to {self.steps}"
            )
        return torch.linspace(self.steps, 0, steps + 1, dtype=torch.float64).round() / self.steps
