"""The reward of a skip policy: the gain in image quality over running all steps, minus a cost per evaluation."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.metrics.score import UNAVAILABLE, Score, as_scores


class Term(nn.Module):
    """One score in the reward, of whole images without a border left out.

    Its sign follows from the direction of the score: a better image always has the larger reward.

    Args:
        score: The score, or a metric of torchmetrics.
        weight: Factor in the reward, positive.
        inverse: Use 1 / score in the reward, as SkipDiff does with NIQE.

    Raises:
        ValueError: the weight is not positive, or the metric does not say which direction is better.
    """

    def __init__(self, score: Score | Metric, weight: float = 1.0, inverse: bool = False) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"a term's weight must be positive, the score gives the sign; got weight: {weight}")
        self.score = cast(Score, as_scores([score])[0])
        self.weight, self.inverse = weight, inverse

    @property
    def name(self) -> str:
        """The name of the score."""
        return self.score.name

    def measure(self, sr: Tensor, hr: Tensor, lr: Tensor | None = None) -> Tensor:
        """The score of each image, `[B]`; for the arguments see `Score.forward`.

        Raises:
            ValueError: the images are smaller than the score needs.
        """
        height, width = sr.shape[-2:]
        if min(height, width) < self.score.smallest:
            raise ValueError(
                f"the reward's {self.name} needs {self.score.smallest} pixels on each side, the images have "
                f"{width}x{height}; use larger images or another score"
            )
        measured: Tensor = self.score(sr, hr, lr)
        return measured.float().to(sr.device)

    def contribution(self, measured: Tensor) -> Tensor:
        """The summand of the reward, `[B]`, for values `[B]` of the score."""
        value = 1 / measured if self.inverse else measured
        return self.weight * (value if self.score.higher_is_better != self.inverse else -value)


class Reward(nn.Module):
    """A weighted sum of scores of the final image, minus a price for each evaluation of the network.

    Args:
        terms: The scores.
        price: Subtracted for each evaluation of the network.
        relative: Subtract the quality of the image that running all steps gives with the same noise, so that the reward
            does not depend on how difficult an image is. The released code does not do this.

    Raises:
        ValueError: there are no terms, or two have the same name.
    """

    def __init__(self, terms: list[Term], price: float = 0.01, relative: bool = True) -> None:
        super().__init__()
        names = [term.name for term in terms]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"a reward needs terms of different names, got {', '.join(names) or 'none'}")
        self.terms = nn.ModuleList(terms)
        self.price, self.relative = price, relative

    def __iter__(self) -> Iterator[Term]:
        """Iterates over the terms."""
        return iter(cast(list[Term], self.terms))

    def load(self) -> None:
        """Reads the weights of all scores; called before the first image, and again without harm.

        Raises:
            WeightsError: weights are missing or damaged; a reward has no optional scores.
            MissingPackageError: a package is not installed.
        """
        for term in self:
            try:
                term.score.load()
            except UNAVAILABLE as error:
                without = "use a reward that needs no weights: --config configs/reward/weight_free.yaml"
                raise type(error)(f"{error}; or {without}") from error

    @torch.no_grad()
    def measure(self, sr: Tensor, hr: Tensor, lr: Tensor | None = None) -> dict[str, Tensor]:
        """Each score `[B]`, by name, of images in [-1, 1].

        Args:
            sr: `[B,3,H,W]`, rounded to 8 bits before it is scored.
            hr: The target, likewise.
            lr: The low-resolution image, `[B,3,H/scale,W/scale]`, for scores that compare with it.
        """
        with torch.autocast(sr.device.type, enabled=False):
            sr, hr = _quantized(sr), _quantized(hr)
            lr = None if lr is None else (lr.float() + 1) / 2
            return {term.name: term.measure(sr, hr, lr) for term in self}

    def quality(self, measured: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the scores, `[B]`."""
        return torch.stack([term.contribution(measured[term.name]) for term in self]).sum(dim=0)

    def forward(self, quality: Tensor, *, all_run: Tensor, evaluations: Tensor) -> Tensor:
        """The reward, `[B]`.

        Args:
            quality: Quality of the image, `[B]`.
            all_run: Quality of the image that running all steps gives, `[B]`; only used if `relative`.
            evaluations: Number of evaluations of the network, `[B]`.
        """
        return quality - (all_run if self.relative else 0) - self.price * evaluations


def _quantized(image: Tensor) -> Tensor:
    """Images in [-1, 1] rounded to 8 bits, in [0, 1]."""
    return ((image.float().clamp(-1, 1) + 1) * 127.5).round() / 255
