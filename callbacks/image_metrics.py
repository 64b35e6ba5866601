"""Scores of validation and test images, beside those of plain enlargement."""

import csv
import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed

from callbacks.evaluation import EvaluationCallback
from callbacks.kept_images import FOLDER, KeptImages
from datamodules.batch import Batch, assembled, to_pixels
from lightning_modules.evaluation import cost
from lightning_modules.evaluation.protocol import departures, read_protocol
from lightning_modules.evaluation.provenance import described_data, provenance, sha256_of
from lightning_modules.evaluation.results import NAME, table_means, table_rows, write_results
from lightning_modules.float64 import widest
from lightning_modules.metrics.scorer import AnyScore, Measured, Scorer, Scores, classic, means_of
from lightning_modules.whole_file import whole_file

IMAGE_METRICS = "callbacks.image_metrics.ImageMetrics"
BASELINE = "bicubic"  # MATLAB's enlargement of the low-resolution image, whatever the model is given as `up`


class Kept(NamedTuple):
    """What is kept of one image."""

    measured: Measured
    pixels: int  # of the enlarged image
    digests: dict[str, str]  # sha256 of the pixels of `hr` and `lr`
    cost: cost.ImageCost | None

    @property
    def scores(self) -> Scores:
        """Its scores by name."""
        return self.measured.scores


@runtime_checkable
class NamesItsProtocol(Protocol):
    """A method that says how its images were drawn."""

    def protocol(self) -> str:
        """The sampler and its steps: "ddim-10"."""


class ImageMetrics(EvaluationCallback[Kept]):
    """Scores of every validation and test image, each image exactly once.

    Scores are taken of 8-bit images, one image at a time; a data set's score is the mean over its images. Beside each
    stands that of MATLAB's bicubic enlargement of the low-resolution image: `val/psnr_y` and `val/bicubic/psnr_y`.

    The PSNR of an image that equals its target is infinite. Such an image is left out of both means of the score, and
    the results name it; where no other image is left, the mean is infinite, and null in the results.

    Each validation and test leaves `scores/<stage>-step-<n>.csv` with the scores of each image in the run's folder, and
    a run of `validate` or `test` also `results.json`: the scores of each image beside everything that they depend on.

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
        self.scorer = Scorer(classic() if scores is None else scores)
        self.border = border
        self.protocol: UnderProtocol | None = None
        self._border_used = border

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gathers the scores of all overlays, reads their weights and moves them to the model's device.

        Raises:
            TypeError: the model does not say how its images are drawn.
            ValueError: a score is defined in two ways, or a protocol is departed from.
            WeightsError: weights of a score that is not optional are missing.
            MissingPackageError: a package that a score needs is not installed.
        """
        if not isinstance(pl_module, NamesItsProtocol):
            raise TypeError(f"{type(pl_module).__name__} has no `protocol()`, which results are named by")
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, ExtraScores):
                self.scorer.add(callback.scores)
            if isinstance(callback, UnderProtocol):
                self._follow(callback)
        if self.protocol is not None and not self.protocol.targets:
            self.scorer.without("hr", "compares with targets, and the set has none")

        missing = self.scorer.load(trainer.strategy.root_device)
        if trainer.is_global_zero:
            for reason in dict.fromkeys(missing.values()):
                print(f"not measured: {', '.join(name for name in missing if missing[name] == reason)} ({reason})")

    def _follow(self, protocol: "UnderProtocol") -> None:
        if self.protocol is not None and self.protocol.name != protocol.name:
            raise ValueError(f"a run is under one protocol, not under {self.protocol.name} and {protocol.name}")
        if self.border is not None and self.border != protocol.border:
            raise ValueError(f"{protocol.name}: sets the border itself; leave {IMAGE_METRICS}'s border out")
        self.protocol, self.border = protocol, protocol.border

    def collect(self, outputs: dict[str, Any], batch: Batch) -> None:
        """Scores the images of one batch.

        Raises:
            ValueError: an image is too small, or not finite, or two images have one key.
        """
        keys = batch["key"]
        for key in keys:
            if key in self.kept or keys.count(key) > 1:
                raise ValueError(f"{key}: two images of one validation have this key, and scores are kept by key")

        lr = (batch["lr"].to(widest(batch["lr"].device)) + 1) / 2
        sr, scale = to_pixels(outputs["sr"], keys), outputs["sr"].shape[-1] // lr.shape[-1]
        bicubic = to_pixels(assembled(lr, keys, scale=scale, kernel="matlab")["up"], keys)
        hr = to_pixels(batch["hr"], keys) if "hr" in batch else None
        self._border_used = scale if self.border is None else self.border
        measured = self.scorer.measure(
            {"": _unit(sr), f"{BASELINE}/": _unit(bicubic)},
            hr=None if hr is None else _unit(hr),
            lr=lr,
            keys=keys,
            border=self._border_used,
        )

        inputs = {"lr": to_pixels(batch["lr"], keys)} | ({} if hr is None else {"hr": hr})
        pixels = {name: image.cpu().numpy() for name, image in inputs.items()}
        costs = outputs.get("cost", [None] * len(keys))
        for index, (key, each) in enumerate(zip(keys, measured, strict=True)):
            digests = {name: hashlib.sha256(image[index].tobytes()).hexdigest() for name, image in pixels.items()}
            self.kept[key] = Kept(each, sr.shape[-2] * sr.shape[-1], digests, costs[index])

    def check_size(self, image: Tensor, scale: int, key: str) -> None:
        """Refuses images `[B,3,H,W]` that are too small for a score.

        Raises:
            ValueError: they are.
        """
        self.scorer.check_size(image, key, border=scale if self.border is None else self.border)

    def conclude(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        stage: str,
        kept: dict[str, Kept],
        folder: Path,
    ) -> None:
        """Logs the means, and writes them and the scores of each image.

        Raises:
            ValueError: a score is NaN, of images that no training depends on; or processes measured different scores.
        """
        rows = {key: each.scores for key, each in kept.items()}
        if len({(*each.scores, *each.measured.features) for each in kept.values()}) > 1:
            raise ValueError("processes measured different scores: do all of them have the weights of optional scores?")

        of_sets = self.scorer.of_sets([each.measured for each in kept.values()], ["", f"{BASELINE}/"])
        means, infinite = means_of(rows)
        means |= of_sets
        for name, value in means.items():
            shown = name in ("psnr_y", f"{BASELINE}/psnr_y")
            pl_module.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)

        evaluated = trainer.state.fn != TrainerFn.FITTING
        memory = _of_all_processes(_memory(trainer)) if evaluated else []
        if trainer.is_global_zero:
            write_scores(folder / "scores" / f"{stage}-step-{trainer.global_step:06d}.csv", rows)
            if evaluated:
                results = self._results(trainer, pl_module, kept, means, memory)
                write_results(folder / NAME, {**results, "infinite": infinite})

        measured = {**rows, "all images": of_sets}
        nans = [f"{key}: {name} is NaN" for key, row in measured.items() for name in row if math.isnan(row[name])]
        if nans:
            message = f"{'; '.join(nans)}. Leave the image or the score out, or look at the image"
            if evaluated:
                raise ValueError(f"{message}. All other scores are written to {folder}")
            if trainer.is_global_zero:
                warnings.warn(message, stacklevel=1)

    def _results(
        self,
        trainer: Trainer,
        method: LightningModule,
        kept: Mapping[str, Kept],
        means: Scores,
        memory: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """What `results.json` holds."""
        columns = {"model": "", BASELINE: f"{BASELINE}/"}
        names = [name for name in means if not name.startswith(f"{BASELINE}/")]
        of_images = [name for name in names if name in next(iter(kept.values())).scores]
        facts = provenance(trainer, method)
        facts["data"] |= {"count": len(kept), **data_digests(kept)}

        return {
            "protocol": None if self.protocol is None else self.protocol.name,
            "columns": None if self.protocol is None else self.protocol.columns,
            **facts,
            "measured": {
                "pixels": "clamped and rounded to 8 bits",
                "border": self._border_used,
                "mean": "of the values of single images, without those that are infinite for the model or for bicubic",
                "bicubic": "MATLAB's enlargement of the low-resolution image",
            },
            "definitions": self.scorer.definitions(),
            "not_measured": self.scorer.not_measured,
            "baseline": BASELINE,
            "pictures": _pictures(trainer),
            "means": table_means(means, names, columns),
            **_costs(method, kept, memory),
            "rows": table_rows({key: each.scores for key, each in kept.items()}, of_images, columns),
        }


class UnderProtocol(Callback):
    """Holds a run to a named protocol, which its results then state; part of each config in `configs/protocol`.

    Args:
        name: Of the protocol, with its version: "classic-bicubic-x4-y@1".
        columns: The scores of its tables.
        border: Pixels left out on each side for scores such as PSNR and SSIM; the scale by default.
        targets: Whether there are targets; otherwise scores that compare with them are left out.
        also: Further classes of data that may take the place of the protocol's own.
    """

    def __init__(
        self,
        name: str,
        columns: list[str],
        border: int | None = None,
        targets: bool = True,
        also: list[str] | None = None,
    ) -> None:
        self.name, self.columns, self.border, self.targets, self.also = name, columns, border, targets, also or []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares the data with the protocol's.

        Raises:
            ValueError: they depart from it, or the run has no `ImageMetrics`.
        """
        if not any(isinstance(callback, ImageMetrics) for callback in cast(Any, trainer).callbacks):
            raise ValueError(f"{self.name}: nothing is measured: add {IMAGE_METRICS} to trainer.callbacks")
        data = described_data(cast(Any, trainer).datamodule)
        found = departures(read_protocol(self.name), data["class"], data["config"])
        if found:
            raise ValueError(
                f"{self.name}: this run is not under the protocol: {'; '.join(found)}. Leave the change out, or the "
                "protocol"
            )


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
            raise ValueError(f"scores are listed that nothing measures: add {IMAGE_METRICS} to trainer.callbacks")


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """One line for each image, in the order of their keys."""
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["key", *next(iter(scores.values()))])
        writer.writeheader()
        writer.writerows({"key": key, **row} for key, row in scores.items())


def data_digests(kept: Mapping[str, Kept]) -> dict[str, str | None]:
    """Hashes of the keys and pixels of all targets, and of all low-resolution images; None where there are none."""
    return {
        f"{name}_sha256": sha256_of({key: each.digests[name] for key, each in kept.items()})
        if all(name in each.digests for each in kept.values())
        else None
        for name in ("hr", "lr")
    }


def _costs(method: LightningModule, kept: Mapping[str, Kept], memory: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries `cost` and `times`, as far as they were measured."""
    measured = {key: each.cost for key, each in kept.items() if each.cost is not None}
    if len(measured) < len(kept):
        return {"cost": cost.parameters(method), "times": {}}
    fixed, times = cost.summary(measured, {key: each.pixels for key, each in kept.items()})
    most = max(memory, key=lambda each: float(each["peak_memory_mib"]), default={})
    return {"cost": {**cost.parameters(method), **fixed}, "times": {**times, **most}}


def _keeper(trainer: Trainer) -> KeptImages | None:
    """The callback that measures what the images of this test cost."""
    if trainer.state.fn != TrainerFn.TESTING:
        return None
    return next((each for each in cast(Any, trainer).callbacks if isinstance(each, KeptImages)), None)


def _memory(trainer: Trainer) -> dict[str, Any] | None:
    keeper = _keeper(trainer)
    return None if keeper is None or keeper.meter is None else keeper.meter.peak_memory()


def _of_all_processes(mine: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What each process has, without the missing ones; every process must call this."""
    parts: list[dict[str, Any] | None] = [mine]
    if distributed.is_available() and distributed.is_initialized():
        parts = [None for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(parts, mine)
    return [part for part in parts if part is not None]


def _pictures(trainer: Trainer) -> dict[str, str] | None:
    """The folders of pictures beside the results."""
    keeper = _keeper(trainer)
    return {kind: f"{FOLDER}/{kind}" for kind in ("sr", "hr", "lr")} if keeper is not None and keeper.keep else None


def _unit(pixels: Tensor) -> Tensor:
    """uint8 to [0, 1]."""
    return pixels.to(widest(pixels.device)) / 255
