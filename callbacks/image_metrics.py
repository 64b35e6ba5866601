"""Scores of validation and test images, beside those of plain enlargement."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from callbacks.evaluation import EvaluationCallback
from datamodules.batch import Batch, to_pixels
from lightning_modules.metrics.lpips import lpips as published_lpips
from lightning_modules.metrics.niqe import NIQE
from lightning_modules.metrics.pixels import crop_border, luma
from lightning_modules.metrics.ssim import WINDOW, ssim

Scores = dict[str, float]  # of one image, by the score's name


@runtime_checkable
class NamesItsProtocol(Protocol):
    """A method that says how its images were drawn."""

    def protocol(self) -> str:
        """The sampler and its steps: "ddim-10"."""


class ImageMetrics(EvaluationCallback[Scores]):
    """PSNR and SSIM in RGB and on Y, and the colour error, of every validation and test image exactly once.

    Scores are taken of 8-bit images, without a border for PSNR and SSIM, one image at a time; a data set's score is the
    mean over its images. Y is BT.601 in studio range. `colour_error_r` (`_g`, `_b`) is the absolute difference of the
    two images' means in grey levels, which small training batches make drift. The same scores of `batch["up"]` are
    logged under the baseline's name: `val/psnr_y` beside `val/bicubic/psnr_y`.

    Each validation and test leaves `scores/<stage>-step-<n>.csv` with the scores of each image in the run's folder, and
    a run of `validate` or `test` also `results.json`: the means beside everything that defines them.

    Args:
        border: Pixels left out on each side of PSNR and SSIM; the scale by default, as papers do.
        baseline: What made `batch["up"]`, as the results name it.
        lpips: Also LPIPS on AlexNet; needs torchvision and its weights.
        niqe: Also NIQE; it needs a model of natural photographs.
    """

    def __init__(
        self, border: int | None = None, baseline: str = "bicubic", lpips: bool = False, niqe: NIQE | None = None
    ) -> None:
        if border is not None and border < 0:
            raise ValueError(f"border must be at least 0, got {border}")
        super().__init__()
        self.border, self.baseline = border, baseline
        self.lpips = published_lpips() if lpips else None
        self.niqe = niqe
        self._border_used = border

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Moves what has weights to the model's device.

        Raises:
            TypeError: the model does not say how its images are drawn.
        """
        if not isinstance(pl_module, NamesItsProtocol):
            raise TypeError(f"{type(pl_module).__name__} has no `protocol()`, which results are named by")
        for metric in (self.lpips, self.niqe):
            if metric is not None:
                metric.to(trainer.strategy.root_device)

    @torch.no_grad()
    def collect(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Scores the images of one batch.

        Raises:
            ValueError: an image is too small, or not finite, or two images have one key.
        """
        keys, hr = batch["key"], _unit(batch["hr"], batch["key"])
        border = hr.shape[-1] // batch["lr"].shape[-1] if self.border is None else self.border
        if min(hr.shape[-2:]) < 2 * border + WINDOW:
            raise ValueError(
                f"{keys[0]}: {hr.shape[-1]}x{hr.shape[-2]} pixels are too few for SSIM, which needs {WINDOW} on each "
                f"side beside the border of {border}; score larger images, or set a smaller border"
            )
        self._border_used = border
        model = self._score(_unit(outputs["sr"], keys), hr, border)
        baseline = self._score(_unit(batch["up"], keys), hr, border)
        named = {**model, **{f"{self.baseline}/{name}": value for name, value in baseline.items()}}
        table = torch.stack([value.double() for value in named.values()], dim=1).tolist()  # one transfer a batch
        for key, row in zip(keys, table, strict=True):
            if key in self.kept:
                raise ValueError(f"{key}: two images of one validation have this key, and scores are kept by key")
            self.kept[key] = dict(zip(named, row, strict=True))

    def _score(self, image: Tensor, hr: Tensor, border: int) -> dict[str, Tensor]:
        scores = full_reference_scores(image, hr, border)
        if self.lpips is not None:
            scores["lpips"] = self.lpips(image.float() * 2 - 1, hr.float() * 2 - 1)
            self.lpips.reset()
        if self.niqe is not None:
            scores["niqe"] = self.niqe.per_image(image)
        return scores

    def conclude(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        stage: str,
        kept: dict[str, Scores],
        folder: Path,
    ) -> None:
        """Logs the means, and writes them and the scores of each image."""
        means = {name: fmean(row[name] for row in kept.values()) for name in next(iter(kept.values()))}
        for name, value in means.items():
            shown = name in ("psnr_y", f"{self.baseline}/psnr_y")
            pl_module.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)
        if not trainer.is_global_zero:
            return
        write_scores(folder / "scores" / f"{stage}-step-{trainer.global_step:06d}.csv", kept)
        if trainer.state.fn != TrainerFn.FITTING:
            description = self._description(trainer, cast(NamesItsProtocol, pl_module), len(kept))
            write_results(folder / "results.json", description, means, self.baseline)

    def _description(self, trainer: Trainer, method: NamesItsProtocol, images: int) -> dict[str, Any]:
        return {
            "images": images,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "protocol": {
                "sampler": method.protocol(),
                "pixels": "clamped and rounded to 8 bits",
                "y": "BT.601 studio range of the 8-bit RGB, not rounded again",
                "border": self._border_used,
                "mean": "of the values of single images",
                "ssim": "11x11 Gaussian, sigma 1.5, valid windows, mean over channels",
                "colour_error": "absolute difference of the channel means, whole image, grey levels",
            },
        }


def full_reference_scores(image: Tensor, hr: Tensor, border: int) -> dict[str, Tensor]:
    """PSNR in dB, SSIM, and the colour error in grey levels, of each image.

    Args:
        image: `[B,3,H,W]` in [0, 1], 8-bit values in float64.
        hr: The target, likewise.
        border: Pixels left out on each side of PSNR and SSIM.

    Returns:
        `[B]` by the score's name.
    """
    scores = {}
    inner, target = crop_border(image, border), crop_border(hr, border)
    for channels, a, b in (("y", luma(inner), luma(target)), ("rgb", inner, target)):
        scores[f"psnr_{channels}"] = peak_signal_noise_ratio(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")
        scores[f"ssim_{channels}"] = ssim(a, b)
    error = 255 * (image.mean(dim=(-2, -1)) - hr.mean(dim=(-2, -1))).abs()
    return scores | {f"colour_error_{name}": error[:, index] for index, name in enumerate("rgb")}


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """One line for each image, in the order of their keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["key", *next(iter(scores.values()))])
        writer.writeheader()
        writer.writerows({"key": key, **row} for key, row in scores.items())


def write_results(path: Path, description: dict[str, Any], means: Scores, baseline: str) -> None:
    """The means, each model's beside the baseline's, after what defines them."""
    results = dict(description)
    for name in (name for name in means if not name.startswith(f"{baseline}/")):
        results[name] = {baseline: means[f"{baseline}/{name}"], "model": means[name]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def _unit(image: Tensor, keys: list[str]) -> Tensor:
    return to_pixels(image, keys).double() / 255
