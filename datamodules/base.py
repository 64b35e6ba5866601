"""The data module that every data set extends: it reads streams of uint8 images and degrades them on the device."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.batch import Batch, assembled, signed
from datamodules.degradations.bicubic import Bicubic
from datamodules.degradations.degradation import Degradation
from datamodules.degradations.enlarge import Enlargement
from datamodules.degradations.levels import from_uint8
from datamodules.stream.crops import CenterCrop, RandomCrop
from datamodules.stream.loader import Loader
from datamodules.stream.sources import AttentionMapSource, DataError, Source
from datamodules.stream.streams import EvalStream, Rank, RawBatch, TrainStream

_log = logging.getLogger(__name__)


class SRDataModule(LightningDataModule, ABC):
    """Super-resolution data: a subclass says where the samples of each split are, and nothing else.

    Training is an endless stream counted in steps: bound a run with `max_steps`, and an epoch, if wanted, with
    `limit_train_batches`. Validation and test see every image once.

    What a batch holds is a function of `seed` and of the number of batches so far. So a resumed run continues exactly,
    and any step can be repeated: `load_state_dict({"batches": n})` makes the training stream begin with batch n. The LR
    image of an evaluation is a function of its key alone.

    Args:
        scale: HR size over LR size.
        crop: side of the HR patch in training, a multiple of `scale`.
        batch_size: training patches per process.
        num_workers: loading processes per process; the order of the data does not depend on it.
        degradation: makes LR from HR on the device; MATLAB's bicubic by default.
        paired: use the LR images that the set holds, and no `degradation`.
        up_kernel: how `up` is made from `lr`; results depend on it.
        flip: mirror training patches at random.
        rotate: turn training patches by 90 degrees at random.
        val_crop: side of the centre patch in validation and test; None takes whole images.
        val_batch_size: images per validation batch; whole images of different sizes need 1.
        shuffle: window of the shuffle, in samples.
        seed: of order, patches and degradations in training; None takes that of the run (`seed_everything`).
        max_bad: share of the training samples that may be damaged before the run stops; at least 5 may, unless it is 0.
        attention: folder of attention maps of the whole LR images, `<key without the set's name>.png`, which are
            cropped and mirrored with the images (YODA); None leaves the map to the method.

    Raises:
        ValueError: a number is too small; `crop` or `val_crop` is not a multiple of `scale`; or the degradation has
            another scale.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        crop: int = 160,
        batch_size: int = 16,
        num_workers: int = 2,
        degradation: Degradation | None = None,
        paired: bool = False,
        up_kernel: Enlargement = "matlab",
        flip: bool = True,
        rotate: bool = False,
        val_crop: int | None = None,
        val_batch_size: int = 1,
        shuffle: int = 10_000,
        seed: int | None = None,
        max_bad: float = 0.01,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        counts = {"scale": scale, "batch_size": batch_size, "val_batch_size": val_batch_size}
        for name, value, least in (*((*count, 1) for count in counts.items()), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name}: must be at least {least}, got {value}")
        self.save_hyperparameters()
        if isinstance(self.hparams.get("degradation"), Degradation):
            del self.hparams["degradation"]  # built in code, not from a config: a checkpoint holds plain values only
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer validation images than ranks

        self.scale, self.up_kernel, self.paired = scale, up_kernel, paired
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.shuffle, self.max_bad = shuffle, max_bad
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed

        if paired and degradation is not None:
            _log.warning("paired: the LR images of the set are used, the degradation is not")
        self.degradation = degradation or Bicubic(scale)
        self.train_crop = RandomCrop(crop, scale, self.seed, flip, rotate)
        self.val_crop = CenterCrop(val_crop, scale)
        self.attention = None if attention is None else Path(attention).expanduser()
        self._batches_before = 0  # of the run that this one resumes
        self._check_scale()

    def _check_scale(self) -> None:
        for name, size in (("crop", self.train_crop.size), ("val_crop", self.val_crop.size or self.scale)):
            if size <= 0 or size % self.scale:
                raise ValueError(f"{name}: {size} is not a multiple of scale {self.scale}")
        if self.degradation.scale != self.scale:
            raise ValueError(f"degradation: its scale is {self.degradation.scale}, but the data's is {self.scale}")

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], *, splits: Collection[str], **_: Any) -> str | None:
        """What of the splits that will be read is not on this machine, and how to get it; None where all is there.

        Sets at URLs are not looked at. What else is wrong with the arguments is said when the data are built.
        """
        if any("://" in str(value) for value in arguments.values()):
            return None
        try:
            data = cls(**{**arguments, "degradation": None})
            for split in splits:
                if split == "predict":
                    data.predict_dataloader()
                elif split != "val" or data.validates or "train" not in splits:
                    data._samples(split)
        except FileNotFoundError as error:
            return str(error)
        except ValueError:
            return None
        return None

    @abstractmethod
    def source(self, split: str) -> Source:
        """Where the samples of "train", "val" or "test" are.

        Raises:
            FileNotFoundError: the data do not exist; the message says how to get them.
        """

    def train_dataloader(self) -> Loader:
        """The endless training stream of this rank."""
        stream = TrainStream(
            self._samples("train"),
            self.train_crop,
            batch_size=self.batch_size,
            rank=self.rank,
            seed=self.seed,
            window=self.shuffle,
            max_bad=self.max_bad,
            paired=self.paired,
        )
        return Loader(stream, self.num_workers, first=self._next_batch)

    @property
    def validates(self) -> bool:
        """Whether there is a set to validate on; without one a training goes without."""
        return True

    def val_dataloader(self) -> Loader | list[Loader]:
        """Every validation image once; nothing, with a message, in a training that has no set to validate on."""
        if not self.validates and self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            rank_zero_info(
                "there is no validation set, so this training shows no scores and chooses no best checkpoint; to have "
                "them, set --data.init_args.val (for a folder of photographs to a share of them, such as 10%)"
            )
            return []
        return self._evaluation("val")

    def test_dataloader(self) -> Loader:
        """Every test image once."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> Loader:
        source = self._samples(split)
        damage = source.damage()
        if damage:
            raise DataError(f"{split}: an evaluation set must be complete, but {'; '.join(damage[:5])}")
        repeated = source.duplicates()
        if repeated:
            raise DataError(
                f"{split}: the set holds {', '.join(repeated[:5])} twice; an evaluation must count each image once"
            )
        stream = EvalStream(source, self.val_crop, self.val_batch_size, self.rank, self.paired)
        return Loader(stream, self.num_workers)

    def _samples(self, split: str) -> Source:
        source = self.source(split)
        if not len(source):
            raise DataError(f"{split}: the set holds no sample")
        return source if self.attention is None else AttentionMapSource(source, self.attention)

    @property
    def rank(self) -> Rank:
        """This process among those of the trainer."""
        return Rank(self.trainer.global_rank, self.trainer.world_size) if self.trainer else Rank()

    def batches(self, split: Literal["train", "val", "test", "predict"], device: str = "cpu") -> Iterator[Batch]:
        """What a method is given of a split, for a loop without a trainer; training goes on without end.

        for batch in data.batches("val"):
            sr = method.super_resolve(batch)
        """
        self.prepare_data()
        loader = getattr(self, f"{split}_dataloader")()
        for raw in loader:
            moved = self.transfer_batch_to_device(raw, torch.device(device), 0)
            yield self.on_after_batch_transfer(moved, 0)

    def batches_done(self) -> int:
        """Training batches consumed so far, in this run and in the one it resumes.

        The trainer's own count is right once its loops are restored, but a loader can be started before that (reading
        `estimated_stepping_batches` in `configure_optimizers` does it); this module's state is restored earlier.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return self._batches_before
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        return max(self._batches_before, int(progress["total"]["processed"]))

    def protocol(self) -> dict[str, Any]:
        """What the scores of an evaluation depend on, as results state it."""
        size = self.val_crop.size
        made = {name: value for name, value in vars(self.degradation).items() if not name.startswith("_")}
        return {
            "images": "whole" if size is None else f"centre {size}x{size}",
            "low_resolution": "of the set" if self.paired else {"made by": type(self.degradation).__name__, **made},
            "up_kernel": self.up_kernel,
        }

    def _next_batch(self) -> int:
        """The number of the batch that an iteration begins with; `overfit_batches` repeats the first ones."""
        repeated = 0 if self.trainer is None else int(cast(Any, self.trainer).overfit_batches)
        return self.batches_done() % repeated if repeated else self.batches_done()

    def state_dict(self) -> dict[str, Any]:
        """The number of training batches consumed."""
        return {"batches": self.batches_done()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the batches of the checkpoint."""
        self._batches_before = state_dict["batches"]

    def on_after_batch_transfer(self, batch: RawBatch | Batch, dataloader_idx: int) -> Batch:
        """Makes a `Batch` of uint8 HR, or of HR and LR, by degrading on the device; a `Batch` is returned as it is."""
        if "draw" not in batch:
            return batch

        hr = from_uint8(batch["hr"])
        if "lr" in batch:
            lr = from_uint8(batch["lr"])
        else:
            # only training targets are sharpened: results are compared with the photograph
            hr = self.degradation.target(hr) if batch["training"] else hr
            lr = self._degrade(hr, batch)

        made = self.assemble(lr, batch["key"], hr)
        if "attention" in batch:
            grey = from_uint8(batch["attention"][:, :1])
            made["attention"] = interpolate(grey, size=hr.shape[-2:], mode="bilinear", align_corners=False)
        return made

    def assemble(self, lr: Tensor, key: list[str], hr: Tensor | None = None) -> Batch:
        """A `Batch` of images in [0,1]: `lr` is `[B,3,h,w]`, `hr`, if there is one, `[B,3,H,W]`."""
        batch = assembled(lr, key, scale=self.scale, kernel=self.up_kernel)
        if hr is not None:
            batch["hr"] = signed(hr)
        return batch

    def _degrade(self, hr: Tensor, batch: RawBatch) -> Tensor:
        self.degradation.check_size(*hr.shape[-2:], key=batch["key"][0])
        seed = self.seed if batch["training"] else 0
        recipes = [
            self.degradation.recipe(key, epoch=epoch, seed=seed)
            for key, epoch in zip(batch["key"], batch["draw"], strict=True)
        ]
        return self.degradation.apply(hr, recipes)
