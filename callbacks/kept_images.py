"""The images of a test as files, with what each cost; an interrupted test goes on with them."""

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datamodules.batch import Batch, to_pixels
from datamodules.images import ImageError, decode
from lightning_modules.evaluation.cost import ImageCost, Meter
from lightning_modules.evaluation.provenance import provenance, sha256_of
from lightning_modules.whole_file import whole_file

FOLDER = "images"
MARKER = "unfinished.json"
NOTE = "diffsr"  # the text in a PNG that says what it was made with and what it cost


class KeptImages(Callback):
    """Writes each image of a test to `images/{sr,hr,lr}/<key>.png` in the run's folder, and measures what it costs.

    An enlarged image's file notes the hash of everything that it depends on. When a test was interrupted, the same test
    of the same experiment takes the images that are there instead of sampling them again.

    It stands before `ImageMetrics`, which scores what this callback took or timed: `outputs["cost"]` holds an
    `ImageCost` for each image.

    Args:
        keep: Write the files; without, a test that is interrupted begins anew, and `lightning compare` has no pictures.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.meter: Meter | None = None
        self._folder = Path(FOLDER)
        self._identity = ""
        self._costs: list[ImageCost] | None = None  # of the present batch, where its images were there

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for an interrupted test with the same images."""
        self.meter = Meter(pl_module, trainer.strategy.root_device, count=trainer.is_global_zero)
        if not self.keep:
            return
        run = Path(trainer.log_dir or ".")

        self._folder, self._identity = run / FOLDER, identity_of(trainer, pl_module)
        if trainer.is_global_zero:
            found = 0
            # What a skip policy did cannot be read from its images.
            if not getattr(pl_module, "watches_sampling", False):
                found = adopt(self._folder, self._identity)
            if found:
                print(f"{found} image(s) of an interrupted test are there already; it goes on with the others")
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / MARKER).write_text(json.dumps({"identity": self._identity}) + "\n")
        trainer.strategy.barrier()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Puts images that are there into the batch as `sr`; otherwise the clock starts."""
        assert self.meter is not None
        self._costs = None if getattr(pl_module, "watches_sampling", False) else self._stored_costs(batch)
        if self._costs is not None:
            try:
                batch["sr"] = self._read(batch)
            except ImageError:  # a damaged file: the image is sampled again
                self._costs = None
        if self._costs is None:
            self.meter.start()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops the clock and writes the images."""
        assert self.meter is not None
        if self._costs is not None:
            outputs["cost"] = self._costs
            return

        keys = batch["key"]
        cost = self.meter.stop(len(keys))
        outputs["cost"] = [cost] * len(keys)
        if self.keep:
            notes = [{"identity": self._identity, "lr": each, "cost": cost._asdict()} for each in lr_digests(batch)]
            self._write("sr", keys, outputs["sr"], notes)
            self._write("lr", keys, batch["lr"])
            if "hr" in batch:
                self._write("hr", keys, batch["hr"])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The test is complete: its results are written."""
        trainer.strategy.barrier()
        if self.keep and trainer.is_global_zero:
            (self._folder / MARKER).unlink(missing_ok=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the networks as they were."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As `teardown`."""
        self._close()

    def _close(self) -> None:
        if self.meter is not None:
            self.meter.close()

    def _stored_costs(self, batch: Batch) -> list[ImageCost] | None:
        """What the images of a batch cost when this very test made them before; None unless all of them are there."""
        if not self.keep:
            return None
        notes = [note_of(self._path("sr", key), self._identity) for key in batch["key"]]
        stored = [note for note in notes if note is not None]
        if len(stored) < len(notes) or [note["lr"] for note in stored] != lr_digests(batch):
            return None
        return [ImageCost(**note["cost"]) for note in stored]

    def _read(self, batch: Batch) -> Tensor:
        """The images of a batch from their files, `[B,3,H,W]` in [-1, 1]."""
        pixels = [torch.tensor(decode(self._path("sr", key), key)).permute(2, 0, 1) for key in batch["key"]]
        return torch.stack(pixels).to(batch["up"].device) / 127.5 - 1

    def _write(self, kind: str, keys: list[str], images: Tensor, notes: list[dict[str, Any]] | None = None) -> None:
        pixels = to_pixels(images, keys).permute(0, 2, 3, 1).contiguous().cpu()
        for index, (key, image) in enumerate(zip(keys, pixels, strict=True)):
            write_image(self._path(kind, key), np.asarray(image), None if notes is None else notes[index])

    def _path(self, kind: str, key: str) -> Path:
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise ValueError(f"{key}: leads out of the folder of results")
        return self._folder / kind / f"{key}.png"


def identity_of(trainer: Trainer, method: LightningModule) -> str:
    """The hash of everything that the images of a test depend on."""
    return sha256_of(provenance(trainer, method))


def adopt(folder: Path, identity: str) -> int:
    """Links the images of an interrupted test in a neighbouring run's folder into `folder`.

    Returns:
        How many enlarged images of this identity are there.
    """
    for marker in folder.parent.parent.glob(f"*/{FOLDER}/{MARKER}"):
        if marker.parent == folder or _identity_in(marker) != identity:
            continue
        for source in marker.parent.rglob("*.png"):
            target = folder / source.relative_to(marker.parent)
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:  # a file system without links
                shutil.copy2(source, target)
    return sum(note_of(path, identity) is not None for path in (folder / "sr").rglob("*.png"))


def _identity_in(marker: Path) -> str | None:
    try:
        content = json.loads(marker.read_text())
    except (OSError, ValueError):
        return None
    return content.get("identity") if isinstance(content, dict) else None


def note_of(path: Path, identity: str) -> dict[str, Any] | None:
    """The note in the file of an enlarged image; None unless it is there and of this identity."""
    try:
        with Image.open(path) as image:
            note = json.loads(image.info.get(NOTE, "null"))
    except (OSError, ValueError, SyntaxError):  # no file, no image, no JSON
        return None
    return note if isinstance(note, dict) and note.get("identity") == identity else None


def lr_digests(batch: Batch) -> list[str]:
    """A hash of each low-resolution image, which an enlarged one depends on beside the test's identity."""
    pixels = to_pixels(batch["lr"], batch["key"]).cpu().numpy()
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]


def write_image(path: Path, pixels: Any, note: dict[str, Any] | None = None) -> None:
    """Writes uint8 pixels `[H,W,3]` as PNG, whole or not at all."""
    text = PngInfo()
    if note is not None:
        text.add_text(NOTE, json.dumps(note))
    with whole_file(path) as part:
        Image.fromarray(pixels).save(part, format="PNG", pnginfo=text, compress_level=1)
