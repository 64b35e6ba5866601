"""What a skip policy is paid: the quality of its image, compared with the image of all steps, minus a price."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class Term(nn.Module):
    """One metric of the reward, evaluated per image.

    Args:
        metric: Any torchmetrics-style metric over images in [0, 1] that says whether `higher_is_better`.
        weight: Factor in the reward, positive; a metric where lower is better is subtracted.
        inverse: Pay 1 / metric instead, as SkipDiff does with NIQE.
        reference: Whether the metric compares with the target; otherwise it sees the result alone.

    Raises:
        ValueError: the metric does not say which direction is better, or the weight is not positive.
    """

    def __init__(self, metric: Metric, weight: float = 1.0, inverse: bool = False, reference: bool = True) -> None:
        super().__init__()
        if metric.higher_is_better is None or weight <= 0:
            raise ValueError(
                f"{type(metric).__name__} with weight {weight}: the reward needs a metric whose `higher_is_better` is "
                "True or False, and a positive weight"
            )
        self.metric, self.weight, self.inverse, self.reference = metric, weight, inverse, reference

    @property
    def sign(self) -> float:
        """1 where more of what is paid is better, else -1."""
        return 1.0 if bool(self.metric.higher_is_better) != self.inverse else -1.0

    def measure(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The metric of each image of `[B,3,H,W]` in [0, 1]: `[B]`."""
        values = []
        for i in range(len(sr)):
            self.metric.reset()
            self.metric.update(sr[i : i + 1], *([hr[i : i + 1]] if self.reference else []))
            values.append(torch.as_tensor(self.metric.compute(), dtype=torch.float32, device=sr.device))
        self.metric.reset()
        return torch.stack(values)

    def paid(self, measured: Tensor) -> Tensor:
        """The term's share of the reward for measured values `[B]`."""
        return self.sign * self.weight * (1 / measured if self.inverse else measured)


class Reward(nn.Module):
    """Weighted metrics of the final image minus a price for each evaluation of the network.

    Args:
        terms: The metrics.
        price: For each evaluation of the network.
        relative: Subtract the quality of the image that all steps give with the same noise, which takes the difficulty
            of the image out; the released code does not.
    """

    def __init__(self, terms: list[Term], price: float = 0.01, relative: bool = True) -> None:
        super().__init__()
        self.terms: Sequence[Term] = nn.ModuleList(terms)  # type: ignore[assignment]
        self.price, self.relative = price, relative

    @torch.no_grad()
    def measure(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Each metric, `[B]`, by its name, of images `[B,3,H,W]` in [-1, 1], rounded to 8 bits."""
        with torch.autocast(sr.device.type, enabled=False):
            sr, hr = eight_bits(sr), eight_bits(hr)
            return {type(term.metric).__name__: term.measure(sr, hr) for term in self.terms}

    def quality(self, measured: dict[str, Tensor]) -> Tensor:
        """What measured values are worth, `[B]`."""
        return torch.stack([term.paid(measured[type(term.metric).__name__]) for term in self.terms]).sum(dim=0)

    def forward(self, quality: Tensor, reference: Tensor, evaluations: Tensor) -> Tensor:
        """The reward, `[B]`.

        Args:
            quality: Of the image, `[B]`.
            reference: Of the image that all steps give, `[B]`.
            evaluations: How often the network ran, `[B]`.
        """
        return quality - reference * self.relative - self.price * evaluations


def eight_bits(image: Tensor) -> Tensor:
    """Images in [-1, 1] as an 8-bit file would hold them, in [0, 1]."""
    return ((image.float().clamp(-1, 1) + 1) * 127.5).round() / 255
