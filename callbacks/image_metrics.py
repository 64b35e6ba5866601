"""Scores of validation and test images, beside those of plain enlargement."""

import csv
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from callbacks.evaluation import EvaluationCallback
from datamodules.batch import Batch, assembled, to_pixels
from lightning_modules.metrics.colour_error import ColourError
from lightning_modules.metrics.pixels import crop_border
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.score import UNAVAILABLE, Score, SetScore, as_scores, names_of
from lightning_modules.metrics.ssim import SSIM
from lightning_modules.whole_file import whole_file

Scores = dict[str, float]  # of one image, by the score's name
AnyScore = Score | SetScore | Metric  # what a config may list
BASELINE = "bicubic"  # MATLAB's enlargement of the low-resolution image, whatever the model is given as `up`


class Measured(NamedTuple):
    """What is kept of one image."""

    scores: Scores
    features: dict[str, Tensor]  # rows [N,D] of scores of sets, by the score's place and the image they were taken of


@runtime_checkable
class NamesItsProtocol(Protocol):
    """A method that says how its images were drawn."""

    def protocol(self) -> str:
        """The sampler and its steps: "ddim-10"."""


@runtime_checkable
class DescribesItsImages(Protocol):
    """Data that say how their images are made."""

    def protocol(self) -> dict[str, Any]:
        """What the scores depend on: crop, degradation."""


def classic() -> list[Score]:
    """What is measured unless a config says otherwise: PSNR and SSIM on Y and in RGB, and the colour error."""
    pixels = [score(channels) for channels in ("y", "rgb") for score in (PSNR, SSIM)]
    return [*pixels, *(ColourError(channel) for channel in ("r", "g", "b"))]


class ImageMetrics(EvaluationCallback[Measured]):
    """Scores of every validation and test image, each image exactly once.

    Scores are taken of 8-bit images, one image at a time; a data set's score is the mean over its images. Beside each
    stands that of MATLAB's bicubic enlargement of the low-resolution image: `val/psnr_y` and `val/bicubic/psnr_y`.

    The PSNR of an image that equals its target is infinite. Such an image is left out of both means of the score, and
    the results name it; where no other image is left, the mean is infinite, and null in the results.

    Each validation and test leaves `scores/<stage>-step-<n>.csv` with the scores of each image in the run's folder, and
    a run of `validate` or `test` also `results.json`: the means beside everything that defines them.

    A score that is NaN for an image is named with the image: as a warning while a model is trained, as an error once
    everything is written otherwise.

    Args:
        scores: What is measured: scores, scores of sets, and metrics of torchmetrics; `classic` by default.
        border: Pixels left out on each side for scores such as PSNR and SSIM; the scale by default, as papers do.

    Raises:
        ValueError: the border is negative, or two scores have one name.
    """

    def __init__(self, scores: list[AnyScore] | None = None, border: int | None = None) -> None:
        if border is not None and border < 0:
            raise ValueError(f"border must be at least 0, got {border}")
        super().__init__()
        self.scores = as_scores(classic() if scores is None else scores)
        self.border = border
        self.not_measured: dict[str, str] = {}  # why, by the score's name
        self._border_used = border

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gathers the scores of all overlays, reads their weights and moves them to the model's device.

        Raises:
            TypeError: the model does not say how its images are drawn.
            WeightsError: weights of a score that is not optional are missing.
            MissingPackageError: a package that a score needs is not installed.
        """
        if not isinstance(pl_module, NamesItsProtocol):
            raise TypeError(f"{type(pl_module).__name__} has no `protocol()`, which results are named by")
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, ExtraScores):
                self.add(callback.scores)

        for score in list(self.scores):
            try:
                score.load()
            except UNAVAILABLE as error:
                if not score.optional:
                    raise
                self.scores.remove(score)
                self.not_measured |= dict.fromkeys(names_of(score), str(error))
                if trainer.is_global_zero:
                    print(f"not measured: {', '.join(names_of(score))} ({error})")
            else:
                score.to(trainer.strategy.root_device)

    @torch.no_grad()
    def collect(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Scores the images of one batch.

        Raises:
            ValueError: an image is too small, or not finite, or two images have one key.
        """
        keys = batch["key"]
        for key in keys:
            if key in self.kept or keys.count(key) > 1:
                raise ValueError(f"{key}: two images of one validation have this key, and scores are kept by key")

        lr = (batch["lr"].double() + 1) / 2
        sr, scale = _unit(outputs["sr"], keys), outputs["sr"].shape[-1] // lr.shape[-1]
        bicubic = _unit(assembled(lr, keys, scale=scale, kernel="matlab")["up"], keys)
        hr = _unit(batch["hr"], keys) if "hr" in batch else None
        self._border_used = scale if self.border is None else self.border

        values: dict[str, Tensor] = {}
        features: dict[str, list[Tensor]] = {}
        for prefix, image in (("", sr), (f"{BASELINE}/", bicubic)):
            for place, score in enumerate(self.scores):
                self._check_size(score, image, keys[0])
                if isinstance(score, Score):
                    values[f"{prefix}{score.name}"] = self._score(score, image, hr, lr)
                else:
                    features[f"{place}/{prefix}"] = score.features(image)
        for place, score in enumerate(self.scores):
            if isinstance(score, SetScore):
                if hr is None:
                    raise ValueError(f"{', '.join(names_of(score))}: compares with targets, and {keys[0]} has none")
                features[f"{place}/hr"] = score.features(hr)

        # One transfer a batch.
        columns = [value.double().flatten() for value in values.values()]
        table = torch.stack(columns, dim=1).tolist() if columns else [[] for _ in keys]
        for index, (key, row) in enumerate(zip(keys, table, strict=True)):
            taken = {name: rows[index] for name, rows in features.items()}
            self.kept[key] = Measured(dict(zip(values, row, strict=True)), taken)

    def _score(self, score: Score, image: Tensor, hr: Tensor | None, lr: Tensor) -> Tensor:
        if not score.crops_border:
            return cast(Tensor, score(image, hr, lr))
        border = cast(int, self._border_used)
        return cast(Tensor, score(crop_border(image, border), None if hr is None else crop_border(hr, border), lr))

    def check_size(self, image: Tensor, scale: int, key: str) -> None:
        """Refuses images `[B,3,H,W]` that are too small for a score.

        Raises:
            ValueError: they are.
        """
        self._border_used = scale if self.border is None else self.border
        for score in self.scores:
            self._check_size(score, image, key)

    def _check_size(self, score: Score | SetScore, image: Tensor, key: str) -> None:
        border = cast(int, self._border_used) if isinstance(score, Score) and score.crops_border else 0
        if min(image.shape[-2:]) < 2 * border + score.smallest:
            beside = f" beside the border of {border}" if border else ""
            raise ValueError(
                f"{key}: {image.shape[-1]}x{image.shape[-2]} pixels are too few for {', '.join(names_of(score))}, "
                f"which needs {score.smallest} on each side{beside}; score larger images, or leave this score out"
            )

    def conclude(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        stage: str,
        kept: dict[str, Measured],
        folder: Path,
    ) -> None:
        """Logs the means, and writes them and the scores of each image.

        Raises:
            ValueError: a score is NaN, of images that no training depends on; or processes measured different scores.
        """
        rows = {key: measured.scores for key, measured in kept.items()}
        names = list(next(iter(rows.values())))
        if len({(*measured.scores, *measured.features) for measured in kept.values()}) > 1:
            raise ValueError("processes measured different scores: do all of them have the weights of optional scores?")

        of_sets = self._of_sets(kept)
        infinite = {name: [key for key in rows if _is_infinite(rows[key], name)] for name in names}
        means = {name: _mean(rows, name, infinite[name]) for name in names} | of_sets
        for name, value in means.items():
            shown = name in ("psnr_y", f"{BASELINE}/psnr_y")
            pl_module.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)

        evaluated = trainer.state.fn != TrainerFn.FITTING
        if trainer.is_global_zero:
            write_scores(folder / "scores" / f"{stage}-step-{trainer.global_step:06d}.csv", rows)
            if evaluated:
                description = self._description(trainer, cast(NamesItsProtocol, pl_module), len(kept))
                description["infinite"] = {name: keys for name, keys in infinite.items() if keys and "/" not in name}
                write_results(folder / "results.json", description, means)

        measured = {**rows, "all images": of_sets}
        nans = [f"{key}: {name} is NaN" for key, row in measured.items() for name in row if math.isnan(row[name])]
        if nans:
            message = f"{'; '.join(nans)}. Leave the image or the score out, or look at the image"
            if evaluated:
                raise ValueError(f"{message}. All other scores are written to {folder}")
            if trainer.is_global_zero:
                warnings.warn(message, stacklevel=1)

    def _of_sets(self, kept: Mapping[str, Measured]) -> Scores:
        """The numbers of scores of sets, of the model and of the baseline."""
        found: Scores = {}
        for place, score in enumerate(self.scores):
            if not isinstance(score, SetScore):
                continue
            rows = {
                name: torch.cat([measured.features[f"{place}/{name}"] for measured in kept.values()])
                for name in ("", f"{BASELINE}/", "hr")
            }
            for prefix in ("", f"{BASELINE}/"):
                compared = score.compare(rows[prefix], rows["hr"])
                found |= {f"{prefix}{name}": value for name, value in compared.items()}
        return found

    def _description(self, trainer: Trainer, method: NamesItsProtocol, images: int) -> dict[str, Any]:
        return {
            "images": images,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "protocol": {
                "sampler": method.protocol(),
                "pixels": "clamped and rounded to 8 bits",
                "border": self._border_used,
                "mean": "of the values of single images, without those that are infinite for the model or for bicubic",
                "bicubic": "MATLAB's enlargement of the low-resolution image",
                **(data.protocol() if isinstance(data := cast(Any, trainer).datamodule, DescribesItsImages) else {}),
            },
            "definitions": {name: described(score, name) for score in self.scores for name in names_of(score)},
            "not_measured": self.not_measured,
        }


class ExtraScores(Callback):
    """Scores that `ImageMetrics` measures in addition to its own; what overlays of metrics are made of.

    Args:
        scores: As `ImageMetrics` takes them. A score that several overlays list is measured once.
    """

    def __init__(self, scores: list[AnyScore]) -> None:
        self.scores = scores

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses to be ignored.

        Raises:
            ValueError: the run has no `ImageMetrics`.
        """
        if not any(isinstance(callback, ImageMetrics) for callback in cast(Any, trainer).callbacks):
            raise ValueError(
                "scores are listed that nothing measures: add callbacks.image_metrics.ImageMetrics to trainer.callbacks"
            )


def described(score: Score | SetScore, name: str) -> dict[str, Any]:
    """What defines a number, as results state it."""
    better = score.higher_is_better[name] if isinstance(score, SetScore) else score.higher_is_better
    return {"definition": score.definition, "better": "higher" if better else "lower", "weights": score.files}


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """One line for each image, in the order of their keys."""
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["key", *next(iter(scores.values()))])
        writer.writeheader()
        writer.writerows({"key": key, **row} for key, row in scores.items())


def write_results(path: Path, description: dict[str, Any], means: Scores) -> None:
    """The means, each model's beside bicubic's, after what defines them; null where a mean is NaN or infinite."""
    results = dict(description)
    shown = {name: value if math.isfinite(value) else None for name, value in means.items()}
    for name in (name for name in means if not name.startswith(f"{BASELINE}/")):
        results[name] = {BASELINE: shown[f"{BASELINE}/{name}"], "model": shown[name]}
    with whole_file(path) as part:
        part.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")


def _is_infinite(row: Scores, name: str) -> bool:
    """Whether a score of an image, or the same score of the enlargement that it is compared with, is infinite."""
    score = name.removeprefix(f"{BASELINE}/")
    return math.isinf(row[score]) or math.isinf(row[f"{BASELINE}/{score}"])


def _mean(rows: Mapping[str, Scores], name: str, infinite: Sequence[str]) -> float:
    """The mean over images whose score is not infinite; infinite itself where there is no other."""
    return fmean([row[name] for key, row in rows.items() if key not in infinite] or [math.inf])


def _unit(image: Tensor, keys: list[str]) -> Tensor:
    return to_pixels(image, keys).double() / 255
