"""What a score is: one number for each image, or a few numbers for a whole set of images.

The same objects serve validation, test and rewards. A new score is a subclass with one method, `compare` or `judge`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.weight_files import WeightsError, digest


class MissingPackageError(ModuleNotFoundError):
    """A package that a score needs is not installed; the message names the extra that brings it."""


UNAVAILABLE = (WeightsError, MissingPackageError)  # why an optional score is not measured


class Loadable(nn.Module):
    """What scores of one image and scores of sets have in common: how they come to their weights.

    It stays in evaluation mode, whatever the module around it does.

    Attributes:
        optional: Where weights or a package are missing, leave the score out with a message instead of an error.
        definition: How the number is computed, as results state it.
        files: Name and sha256 of each file of weights that `load` read.
    """

    definition: str = ""

    def __init__(self, *, optional: bool = False) -> None:
        super().__init__()
        self.optional = optional
        self.files: dict[str, str] = {}

    def load(self) -> None:
        """Reads the weights; called before the first image, and again without harm.

        Raises:
            WeightsError: weights are missing or damaged.
            MissingPackageError: a package is not installed.
        """

    def record(self, path: Path) -> Path:
        """Notes a file of weights in `files`; returns it."""
        self.files[path.name] = digest(path)
        return path

    def train(self, mode: bool = True) -> "Loadable":
        """Evaluation mode."""
        return super().train(False)


class Score(Loadable, ABC):
    """One number for each image.

    Attributes:
        name: What logs, tables and results call it; one name, one definition.
        higher_is_better: The direction.
        reads_hr: Compares with the target.
        reads_lr: Compares with the low-resolution image.
        crops_border: Is taken without the border that an evaluation leaves out, as PSNR and SSIM are in papers.
        smallest: Pixels that an image needs on each side.
    """

    name: str
    higher_is_better: bool
    reads_hr: bool = False
    reads_lr: bool = False
    crops_border: bool = False
    smallest: int = 1

    @abstractmethod
    def forward(self, sr: Tensor, hr: Tensor | None = None, lr: Tensor | None = None) -> Tensor:
        """The scores of a batch, each independent of the other images.

        Args:
            sr: `[B,3,H,W]` in [0, 1].
            hr: The target, likewise.
            lr: What `sr` was made of, `[B,3,H/scale,W/scale]` in [0, 1].

        Returns:
            `[B]`.

        Raises:
            ValueError: an image that the score reads is missing.
        """


class FullReferenceScore(Score):
    """A score that compares with the target; a subclass writes `compare`."""

    reads_hr = True

    def forward(self, sr: Tensor, hr: Tensor | None = None, lr: Tensor | None = None) -> Tensor:
        """See `Score.forward`."""
        if hr is None:
            raise ValueError(f"{self.name} compares with the target, and these images have none (no `hr`)")
        return self.compare(sr, hr)

    @abstractmethod
    def compare(self, sr: Tensor, hr: Tensor) -> Tensor:
        """`[B]` for images `[B,3,H,W]` in [0, 1] and their targets."""


class NoReferenceScore(Score):
    """A score that sees the result alone; a subclass writes `judge`."""

    def forward(self, sr: Tensor, hr: Tensor | None = None, lr: Tensor | None = None) -> Tensor:
        """See `Score.forward`."""
        return self.judge(sr)

    @abstractmethod
    def judge(self, image: Tensor) -> Tensor:
        """`[B]` for images `[B,3,H,W]` in [0, 1]."""


class SetScore(Loadable, ABC):
    """Numbers of a whole set of images, compared with the set of their targets.

    Features are taken image by image, so that a set may be spread over processes.

    Attributes:
        higher_is_better: The numbers that `compare` gives, by name, and the direction of each.
        smallest: Pixels that an image needs on each side.
    """

    higher_is_better: dict[str, bool]
    smallest: int = 1

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """What a set is compared by: for each image of `[B,3,H,W]` in [0, 1] its rows `[N,D]`, on the CPU."""

    @abstractmethod
    def compare(self, sr: Tensor, hr: Tensor) -> dict[str, float]:
        """The numbers, by name, of all rows `[N,D]` of the results and all rows of the targets."""


class TorchMetric(Score):
    """Any metric of torchmetrics over images in [0, 1], applied to one image at a time, in float32.

    Args:
        metric: The metric; its `update` takes the result, or the result and the target.
        name: What results call it; by default its class, in small letters.
        optional: See `Loadable`.

    Raises:
        ValueError: the metric does not say which direction is better.
    """

    def __init__(self, metric: Metric, name: str | None = None, *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        kind = type(metric).__name__
        if metric.higher_is_better is None:
            raise ValueError(f"{kind} does not say whether more is better: set its `higher_is_better`")
        self.metric = metric
        self.name = name or kind.lower()
        self.higher_is_better = bool(metric.higher_is_better)
        self.reads_hr = len(_required(metric)) > 1
        self.definition = f"{type(metric).__module__}.{kind}, one image at a time, in [0, 1]"

    def forward(self, sr: Tensor, hr: Tensor | None = None, lr: Tensor | None = None) -> Tensor:
        """See `Score.forward`."""
        if self.reads_hr and hr is None:
            raise ValueError(f"{self.name} compares with the target, and these images have none (no `hr`)")

        images = [sr] if hr is None or not self.reads_hr else [sr, hr]
        values = []
        for index in range(len(sr)):
            self.metric.reset()
            self.metric.update(*(image[index : index + 1].float().contiguous() for image in images))
            values.append(self._single(self.metric.compute()).to(sr.device))
        self.metric.reset()
        return torch.stack(values)

    def _single(self, value: Any) -> Tensor:
        """The only number of what the metric computed."""
        if not isinstance(value, Tensor | float | int) or torch.as_tensor(value).numel() != 1:
            raise ValueError(
                f"{self.name} gives something else than one number for an image: a list of scores takes metrics of one "
                "number each"
            )
        return torch.as_tensor(value).detach().float().view(())


def _required(metric: Metric) -> list[str]:
    """The arguments that `update` cannot do without."""
    parameters = signature(cast(Any, metric).update).parameters.values()
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.kind in positional and each.default is each.empty]


def as_scores(listed: Sequence[Score | SetScore | Metric]) -> list[Score | SetScore]:
    """A list of scores as a config gives it, in which metrics of torchmetrics stand as they are.

    Raises:
        ValueError: two of them have one name.
    """
    scores = [TorchMetric(item) if isinstance(item, Metric) else item for item in listed]
    names = [name for score in scores for name in names_of(score)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)}: two scores have this name; give each its own")
    return scores


def names_of(score: Score | SetScore) -> list[str]:
    """The names of the numbers that a score gives."""
    return [score.name] if isinstance(score, Score) else list(score.higher_is_better)
