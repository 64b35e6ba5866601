"""A list of scores applied to batches: the one way in which images are measured, in runs and from folders."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.float64 import in_float64
from lightning_modules.metrics.colour_error import ColourError
from lightning_modules.metrics.pixels import crop_border
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.score import UNAVAILABLE, Score, SetScore, as_scores, names_of
from lightning_modules.metrics.ssim import SSIM

Scores = dict[str, float]  # of one image, by the score's name
AnyScore = Score | SetScore | Metric  # what a config may list


def classic() -> list[Score]:
    """What is measured unless a config says otherwise: PSNR and SSIM on Y and in RGB, and the colour error."""
    pixels = [score(channels) for channels in ("y", "rgb") for score in (PSNR, SSIM)]
    return [*pixels, *(ColourError(channel) for channel in ("r", "g", "b"))]


class Measured(NamedTuple):
    """What is kept of one image."""

    scores: Scores
    features: dict[str, Tensor]  # rows [N,D] of scores of sets, by the score's place and the image they were taken of


class Scorer:
    """Scores of images, each image by itself, and of whole sets.

    Args:
        scores: What is measured: scores, scores of sets, and metrics of torchmetrics.

    Attributes:
        scores: Those that are measured.
        not_measured: Why the others are not, by name; filled by `load`.

    Raises:
        ValueError: two scores have one name.
    """

    def __init__(self, scores: Sequence[AnyScore]) -> None:
        self.scores = as_scores(scores)
        self.not_measured: dict[str, str] = {}

    def add(self, listed: Sequence[AnyScore]) -> None:
        """Measures further scores; one that is already measured stays as it is.

        Raises:
            ValueError: a score of this name is defined otherwise.
        """
        measured = {name: score for score in self.scores for name in names_of(score)}
        for score in as_scores(listed):
            same = [measured[name] for name in names_of(score) if name in measured]
            if any(type(other) is not type(score) or other.definition != score.definition for other in same):
                raise ValueError(
                    f"{', '.join(names_of(score))}: is to be measured as {score.definition!r} and as "
                    f"{same[0].definition!r}: name one of the two otherwise"
                )
            if not same:
                self.scores.append(score)

    def without(self, missing: Literal["hr", "lr"], reason: str) -> None:
        """Leaves out what compares with the targets, or with the low-resolution images, and notes why."""
        for score in list(self.scores):
            reads_hr = isinstance(score, SetScore) or score.reads_hr
            reads_lr = isinstance(score, Score) and score.reads_lr
            if reads_hr if missing == "hr" else reads_lr:
                self.scores.remove(score)
                self.not_measured |= dict.fromkeys(names_of(score), reason)

    def load(self, device: torch.device | str) -> dict[str, str]:
        """Reads the weights of all scores and moves them to a device.

        Returns:
            Optional scores that are not measured, with the reason, by name; those of this call only.

        Raises:
            WeightsError: weights of a score that is not optional are missing.
            MissingPackageError: a package that a score needs is not installed.
        """
        missing: dict[str, str] = {}
        for score in list(self.scores):
            try:
                score.load()
            except UNAVAILABLE as error:
                if not score.optional:
                    raise
                self.scores.remove(score)
                missing |= dict.fromkeys(names_of(score), str(error))
            else:
                score.to(device)

        self.not_measured |= missing
        return missing

    @torch.no_grad()
    def measure(
        self,
        images: Mapping[str, Tensor],
        *,
        hr: Tensor | None,
        lr: Tensor | None,
        keys: Sequence[str],
        border: int,
    ) -> list[Measured]:
        """All scores of one batch.

        Args:
            images: What is measured, `[B,3,H,W]` in [0, 1], by the prefix of its scores' names: "" and "bicubic/".
            hr: The targets, likewise.
            lr: The low-resolution images, `[B,3,H/scale,W/scale]` in [0, 1].
            keys: Names of the images, for errors.
            border: Pixels left out on each side for scores that leave a border out.

        Returns:
            What was measured of each image of the batch.

        Raises:
            ValueError: an image is too small for a score, or what a score compares with is missing.
        """
        values: dict[str, Tensor] = {}
        features: dict[str, list[Tensor]] = {}
        for prefix, image in images.items():
            self.check_size(image, keys[0], border)
            for place, score in enumerate(self.scores):
                if isinstance(score, Score):
                    values[f"{prefix}{score.name}"] = _apply(score, image, hr, lr, border)
                else:
                    features[f"{place}/{prefix}"] = score.features(image)
        for place, score in enumerate(self.scores):
            if isinstance(score, SetScore):
                if hr is None:
                    raise ValueError(f"{', '.join(names_of(score))}: compares with targets, and {keys[0]} has none")
                features[f"{place}/hr"] = score.features(hr)

        columns = [in_float64(value).flatten() for value in values.values()]
        table = torch.stack(columns, dim=1).tolist() if columns else [[] for _ in keys]  # one transfer a batch
        return [
            Measured(dict(zip(values, row, strict=True)), {name: rows[index] for name, rows in features.items()})
            for index, row in enumerate(table)
        ]

    def check_size(self, image: Tensor, key: str, border: int) -> None:
        """Refuses images `[B,3,H,W]` that are too small for a score beside a border.

        Raises:
            ValueError: they are.
        """
        for score in self.scores:
            _check_size(score, image, key, border)

    def of_sets(self, measured: Sequence[Measured], prefixes: Sequence[str]) -> Scores:
        """The numbers of scores of sets, by prefix and name, of all images together."""
        found: Scores = {}
        for place, score in enumerate(self.scores):
            if not isinstance(score, SetScore):
                continue
            rows = {name: torch.cat([each.features[f"{place}/{name}"] for each in measured]) for name in prefixes}
            targets = torch.cat([each.features[f"{place}/hr"] for each in measured])
            for prefix in prefixes:
                compared = score.compare(rows[prefix], targets)
                found |= {f"{prefix}{name}": value for name, value in compared.items()}
        return found

    def definitions(self) -> dict[str, dict[str, Any]]:
        """What defines each number, as results state it: its definition, its direction and its weights' digests."""
        return {name: _described(score, name) for score in self.scores for name in names_of(score)}


def means_of(rows: Mapping[str, Scores]) -> tuple[Scores, dict[str, list[str]]]:
    """The means over images, and the images that are left out of them.

    The PSNR of an image that equals its target is infinite. Such an image is left out of the score's means, with and
    without a prefix ("bicubic/psnr_y"); where no other image is left, the mean is infinite.

    Args:
        rows: The scores of each image, by its key.

    Returns:
        The means by name; and the keys of the images that are left out, by the score's name without a prefix.
    """
    names = list(next(iter(rows.values())))
    infinite: dict[str, list[str]] = {}
    for key, row in rows.items():
        for score in dict.fromkeys(name.rpartition("/")[2] for name in names if math.isinf(row[name])):
            infinite.setdefault(score, []).append(key)
    means = {}
    for name in names:
        left_out = set(infinite.get(name.rpartition("/")[2], ()))
        means[name] = fmean([row[name] for key, row in rows.items() if key not in left_out] or [math.inf])
    return means, infinite


def _apply(score: Score, image: Tensor, hr: Tensor | None, lr: Tensor | None, border: int) -> Tensor:
    if not score.crops_border:
        return cast(Tensor, score(image, hr, lr))
    return cast(Tensor, score(crop_border(image, border), None if hr is None else crop_border(hr, border), lr))


def _check_size(score: Score | SetScore, image: Tensor, key: str, border: int) -> None:
    border = border if isinstance(score, Score) and score.crops_border else 0
    if min(image.shape[-2:]) < 2 * border + score.smallest:
        beside = f" beside the border of {border}" if border else ""
        raise ValueError(
            f"{key}: {image.shape[-1]}x{image.shape[-2]} pixels are too few for {', '.join(names_of(score))}, "
            f"which needs {score.smallest} on each side{beside}; score larger images, or leave this score out"
        )


def _described(score: Score | SetScore, name: str) -> dict[str, Any]:
    better = score.higher_is_better[name] if isinstance(score, SetScore) else score.higher_is_better
    return {"definition": score.definition, "better": "higher" if better else "lower", "weights": score.files}
