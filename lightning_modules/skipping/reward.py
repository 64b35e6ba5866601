"""The reward of a skip policy: the gain in image quality over running all steps, minus a cost per evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio

from lightning_modules.metrics.lpips import lpips
from lightning_modules.metrics.pixels import luma


class Term(nn.Module, ABC):
    """One image metric in the reward.

    Args:
        weight: Factor in the reward, positive; a metric that is better when lower is subtracted.

    Raises:
        ValueError: the weight is not positive.
    """

    higher_is_better: bool

    def __init__(self, weight: float) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"a term's weight must be positive, the metric gives the sign; got weight: {weight}")
        self.weight = weight

    @property
    def name(self) -> str:
        """Name of the term in logs and tables."""
        return type(self).__name__.lower()

    @abstractmethod
    def measure(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The metric of each image, `[B]`, for results and targets `[B,3,H,W]` in [0, 1]."""

    def contribution(self, measured: Tensor) -> Tensor:
        """The summand of the reward, `[B]`, for values `[B]` of the metric."""
        return self.weight * (measured if self.higher_is_better else -measured)


class PSNRY(Term):
    """PSNR in dB on the Y channel (BT.601, studio range), without cropping a border.

    Args:
        weight: See `Term`.
    """

    higher_is_better = True

    def measure(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `Term.measure`."""
        return peak_signal_noise_ratio(luma(sr), luma(hr), data_range=1.0, dim=(1, 2, 3), reduction="none")


class LPIPS(Term):
    """LPIPS on AlexNet (arXiv:1801.03924).

    Args:
        weight: See `Term`.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        FileNotFoundError: AlexNet's weights are missing on this machine.
    """

    higher_is_better = False

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.metric = lpips(otherwise="use a reward that needs no weights: --config configs/reward/weight_free.yaml")

    def measure(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `Term.measure`."""
        scores = self.metric(2 * sr - 1, 2 * hr - 1)
        self.metric.reset()
        return cast(Tensor, scores).view(-1)


class MetricTerm(Term):
    """Any torchmetrics-style metric over images in [0, 1], applied to one image at a time.

    Args:
        metric: The metric; its `higher_is_better` must be set.
        weight: See `Term`.
        inverse: Use 1 / metric in the reward, as SkipDiff does with NIQE.
        reference: Whether the metric is computed from result and target, or from the result only.

    Raises:
        ValueError: the metric's `higher_is_better` is None.
    """

    def __init__(self, metric: Metric, weight: float = 1.0, inverse: bool = False, reference: bool = True) -> None:
        super().__init__(weight)
        if metric.higher_is_better is None:
            raise ValueError(f"{type(metric).__name__} does not say whether more is better: set its `higher_is_better`")
        self.metric, self.inverse, self.reference = metric, inverse, reference
        self.higher_is_better = bool(metric.higher_is_better) != inverse

    @property
    def name(self) -> str:
        """The class name of the metric, in lower case."""
        return type(self.metric).__name__.lower()

    def measure(self, sr: Tensor, hr: Tensor) -> Tensor:
        """See `Term.measure`."""
        values = []
        for i in range(len(sr)):  # torchmetrics average over all images since the last reset
            self.metric.reset()
            self.metric.update(sr[i : i + 1], *([hr[i : i + 1]] if self.reference else []))
            values.append(torch.as_tensor(self.metric.compute(), device=sr.device).float().view(()))
        self.metric.reset()
        return torch.stack(values)

    def contribution(self, measured: Tensor) -> Tensor:
        """See `Term.contribution`."""
        return super().contribution(1 / measured if self.inverse else measured)


class Reward(nn.Module):
    """A weighted sum of metrics of the final image, minus a price for each evaluation of the network.

    Args:
        terms: The metrics.
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

    @torch.no_grad()
    def measure(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Each metric `[B]`, by name, of results and targets `[B,3,H,W]` in [-1, 1], which are rounded to 8 bits."""
        with torch.autocast(sr.device.type, enabled=False):
            sr, hr = _quantized(sr), _quantized(hr)
            return {term.name: term.measure(sr, hr) for term in self}

    def quality(self, measured: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the metrics, `[B]`."""
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
