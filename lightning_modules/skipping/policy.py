"""SkipDiff's policy: a small recurrent convolutional network that decides, per image, whether a fine step runs."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class SkipPolicy(nn.Module):
    """Actor and critic over the noisy sample, with a GRU state carried from decision to decision.

    The sample is resized to a square (bicubic, no antialiasing, as released), encoded by strided convolutions,
    flattened and passed to a GRU; two linear heads give the logits of [run, skip] and the value.

    The published network is `SkipPolicy(hidden=None, norm="batch", decisions=None)`, with 14,225,691 parameters under
    the released file's names. The defaults differ from it: a projection to `hidden` features (0.85 M parameters in
    all); group norm, whose output does not depend on the other images of a batch; and an embedding of the decision's
    index, because a GRU alone counts steps poorly.

    Source: the code released with SkipDiff, AAAI 2024 (paper 28195).

    Args:
        in_channels: Channels of the sample.
        channels: Output channels of the convolutions, each of stride 2.
        kernels: Kernel sizes of the convolutions, odd.
        resize: Side in pixels of the square that the sample is resized to.
        hidden: Features that a linear projection gives the GRU; None for the flattened features, as published.
        norm: Normalization after each convolution; `batch` is the published one. `batch_image` is the same in training,
            and in evaluation takes the statistics of each image by itself instead of running ones, as the released
            code does, which tests single images in training mode.
        decisions: Number of decisions that the index embedding has entries for; None for no embedding, as published.

    Raises:
        ValueError: `channels` and `kernels` differ in length, or a kernel is even.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 24, 24, 24),
        kernels: Sequence[int] = (9, 5, 5, 5),
        resize: int = 128,
        *,
        hidden: int | None = 256,
        norm: Literal["none", "group", "batch", "batch_image"] = "group",
        decisions: int | None = 10,
    ) -> None:
        super().__init__()
        if len(channels) != len(kernels) or any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"channels {channels} and kernels {kernels} must pair up, and kernels be odd")
        self.resize = resize
        self.decisions = decisions

        widths = [in_channels, *channels]
        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, stride=2, padding=kernel // 2)
            layers += [conv, _norm(norm, widths[i + 1]), nn.ReLU()]
        self.state_encoder = nn.Sequential(*layers)

        flat = widths[-1] * _halved(resize, len(kernels)) ** 2
        self.width = flat if hidden is None else hidden
        self.projection = nn.Identity() if hidden is None else nn.Linear(flat, hidden)
        self.clock = None if decisions is None else nn.Embedding(decisions, self.width)

        self.gru = nn.GRU(self.width, self.width)
        self.actor = nn.Sequential(nn.Linear(self.width, 2))
        self.critic = nn.Sequential(nn.Linear(self.width, 1))

    def observe(self, x: Tensor) -> Tensor:
        """Resizes samples `[B,C,H,W]` to the encoder's input, `[B,C,resize,resize]`."""
        if x.shape[-2:] == (self.resize, self.resize):
            return x
        return functional.interpolate(x, size=(self.resize, self.resize), mode="bicubic", align_corners=False)

    def initial_state(self, batch_size: int, device: torch.device) -> Tensor:
        """The GRU state before the first decision: zeros `[B,width]`."""
        return torch.zeros(batch_size, self.width, device=device)

    def step(self, observation: Tensor, state: Tensor, decision: int) -> tuple[Tensor, Tensor, Tensor]:
        """One decision.

        Args:
            observation: `[B,C,resize,resize]`, from `observe`.
            state: GRU state, `[B,width]`.
            decision: Index of the decision, from 0.

        Returns:
            Logits `[B,2]` of [run, skip], value `[B]`, next GRU state `[B,width]`.
        """
        logits, value, state = self._read(observation[None], state[None], first=decision)
        return logits[0], value[0], state[0]

    def sequence(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Replays whole episodes from a zero state, so that gradients flow through all decisions.

        Args:
            observations: `[K,B,C,resize,resize]`, of the K decisions in order.

        Returns:
            Logits `[K,B,2]` of [run, skip], values `[K,B]`.
        """
        state = self.initial_state(observations.shape[1], observations.device)
        logits, value, _ = self._read(observations, state[None], first=0)
        return logits, value

    def _read(self, observations: Tensor, state: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[K,B,2]`, values `[K,B]` and the next state `[1,B,width]`, of decisions from index `first` on."""
        # In float32 also under autocast, because PPO divides probabilities by those of the rollout.
        with torch.autocast(observations.device.type, enabled=False):
            output, state = self.gru(self._encode(observations.float(), first), state)
            return self.actor(output), self.critic(output)[..., 0], state

    def _encode(self, observations: Tensor, first: int) -> Tensor:
        """Features `[K,B,width]` of observations `[K,B,C,resize,resize]` of decisions from index `first` on.

        Raises:
            ValueError: there are more decisions than entries of the index embedding.
        """
        decisions, batch_size = observations.shape[:2]
        if self.decisions is not None and first + decisions > self.decisions:
            raise ValueError(
                f"the policy was built for {self.decisions} decisions, but is asked for decision {first + decisions}: "
                "set its `decisions` to at least the sampler's number of fine steps"
            )

        features: Tensor = self.projection(self.state_encoder(observations.flatten(0, 1)).flatten(1))
        features = features.view(decisions, batch_size, self.width)
        if self.clock is None:
            return features

        index = torch.arange(first, first + decisions, device=features.device)
        timed: Tensor = features + self.clock(index)[:, None]
        return timed


def _norm(kind: str, channels: int) -> nn.Module:
    """The normalization layer; an identity for `none`, because checkpoints name layers by their position."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "group": lambda: nn.GroupNorm(1, channels),
        "batch": lambda: nn.BatchNorm2d(channels),
        "batch_image": lambda: ImageStatistics(channels),
    }
    return layers[kind]()


class ImageStatistics(nn.BatchNorm2d):
    """Batch norm that in evaluation takes the mean and variance of each image by itself, as for a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,h,w]`, normalised."""
        if self.training:
            return super().forward(x)
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def _halved(side: int, times: int) -> int:
    """Side of the feature map after `times` convolutions of stride 2 and half-kernel padding, from a side `side`."""
    for _ in range(times):
        side = (side + 1) // 2
    return side
