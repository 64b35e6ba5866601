"""A method with a discriminator and a second optimizer is a subclass outside of the package: the base stays as it is.

The losses are ESRGAN's relativistic ones (Eq. 1 and 2 of arXiv:1809.00219) on the estimate of the clean image.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from callbacks.ema import EMA
from datamodules.batch import Batch
from lightning_modules.diffusion.parameterization import Epsilon
from lightning_modules.diffusion.samplers import DDIM
from lightning_modules.diffusion.schedules import Linear
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.sr3 import SR3

ACCUMULATED = 2  # batches to a step
CLIP = 1e-3


def relativistic(real: Tensor, fake: Tensor) -> Tensor:
    """How far `real` is from being told to be more real than `fake`, and the other way round."""
    ones = torch.ones_like(real)
    return (
        binary_cross_entropy_with_logits(real - fake.mean(), ones)
        + binary_cross_entropy_with_logits(fake - real.mean(), 1 - ones)
    ) / 2


class AdversarialSR3(SR3):
    """SR3 with a discriminator on its estimates of the clean image."""

    def __init__(self, discriminator: nn.Module, **diffusion: Any) -> None:
        super().__init__(**diffusion)
        self.discriminator = discriminator
        self.automatic_optimization = False
        self.norms: list[float] = []  # of the clipped gradients

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.network, self.discriminator)]

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        result = self.training_losses(batch)
        noised = result.noised
        x0 = self.parameterization.x0(self.process, result.output, x_t=noised.x_t, anchor=noised.anchor, t=noised.t)
        image = self.decode(x0, batch)

        fooled = relativistic(self.discriminator(image), self.discriminator(batch["hr"]).detach())
        self._learn(0, result.losses["loss"] + 0.1 * fooled, self.network, batch_idx)
        told = relativistic(self.discriminator(batch["hr"]), self.discriminator(image.detach()))
        self._learn(1, told, self.discriminator, batch_idx)
        return {"loss": result.losses["loss"].detach(), "t": noised.t}

    def _learn(self, index: int, loss: Tensor, part: nn.Module, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()[index]  # type: ignore[index]
        self.toggle_optimizer(optimizer)
        self.manual_backward(loss / ACCUMULATED)
        self.untoggle_optimizer(optimizer)
        if (batch_idx + 1) % ACCUMULATED:
            return
        self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        optimizer.step()
        optimizer.zero_grad()


def make_model() -> AdversarialSR3:
    torch.manual_seed(0)
    return AdversarialSR3(
        discriminator=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3)),
        network=SR3UNet(inner_channel=8, channel_mults=(1, 2), attn_res=(), res_blocks=1, norm_groups=4, image_size=16),
        process=VP(Linear(10, 1e-4, 0.2), continuous=True),
        parameterization=Epsilon("level"),
        space=Pixels(),
        sampler=DDIM(2),
    )


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(count):
        hr = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
        lr = nn.functional.avg_pool2d(hr, 4)
        up = nn.functional.interpolate(lr, scale_factor=4)
        found.append(Batch(hr=hr, lr=lr, up=up, key=[f"{index}a", f"{index}b"]))
    return found


def fit(model: AdversarialSR3, folder: Path, data: list[Batch], max_epochs: int, resume: Path | None = None) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMA(decay=0.5, warmup=False), ModelCheckpoint(dirpath=folder, save_last=True)],
    )
    trainer.fit(model, DataLoader(data, batch_size=None), ckpt_path=resume)  # type: ignore[arg-type]
    return trainer


@pytest.fixture
def trained(tmp_path: Path) -> tuple[AdversarialSR3, Trainer, Path]:
    model = make_model()
    return model, fit(model, tmp_path / "straight", batches(4), max_epochs=2), tmp_path


def test_both_networks_learn_with_accumulated_and_clipped_gradients(trained: Any) -> None:
    model, trainer, _ = trained
    assert trainer.global_step == 2 * 2 * 2  # epochs, steps of two batches each, optimizers
    assert len(model.norms) == 8
    assert max(model.norms) <= CLIP * 1.001
    assert min(model.norms) > 0
    fresh = make_model().state_dict()
    for part in ("network", "discriminator"):
        moved = [name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])]
        assert any(name.startswith(part) for name in moved), f"{part} has not learned"


def test_checkpoints_hold_averages_and_both_optimizers(trained: Any) -> None:
    _, _, folder = trained
    checkpoint = torch.load(folder / "straight" / "last.ckpt", weights_only=True)
    assert len(checkpoint["optimizer_states"]) == 2
    name = "network.final_conv.block.3.weight"
    averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert name in raw, sorted(raw)[:5]
    assert not torch.equal(averaged[name], raw[name])


def test_a_resumed_run_equals_a_straight_one(trained: Any) -> None:
    model, _, folder = trained
    first = make_model()
    fit(first, folder / "half", batches(4), max_epochs=1)
    resumed = make_model()
    fit(resumed, folder / "half", batches(4), max_epochs=2, resume=folder / "half" / "last.ckpt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_images_are_sampled_as_ever(trained: Any) -> None:
    model, _, _ = trained
    images = batches(1)[0]
    assert model.eval().super_resolve(images).shape == images["hr"].shape
