"""ResShift and DoSSR as modules: what the network is shown, training, several draws."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.batch import Batch
from lightning_modules import resshift
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, load_network
from lightning_modules.cli import main
from lightning_modules.config import configured_model
from lightning_modules.config_files import CONFIGS
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.parameterization import AnchorResidual, Clean, ShiftedEpsilon
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import ScaledLinear
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.dossr import DoSSR
from lightning_modules.networks.attention_maps import Sobel
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.networks.unet_swin import UNetSwin
from lightning_modules.resshift import ResShift
from tests.tiny.experiments import arguments

SWIN: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "size": 16}
SWIN |= {"swin_width": 32, "head_channels": 16, "window": 4}


def make_resshift(**arguments: Any) -> ResShift:
    defaults: dict[str, Any] = {
        "network": UNetSwin(**SWIN, zero_output=True),
        "process": ResidualShift(steps=4, min_noise_level=0.2),
        "parameterization": AnchorResidual("index", input_scale="pixel"),
        "space": Pixels(),
        "sampler": Ancestral(4),
        "condition_on": "up",
    }
    return ResShift(**{**defaults, **arguments})


def make_dossr(**arguments: Any) -> DoSSR:
    small: dict[str, Any] = {"inner_channel": 16, "channel_mults": (1, 2), "attn_res": (), "res_blocks": 1}
    network = SR3UNet(**small, norm_groups=8, image_size=16, conditioning="index", zero_output=True)
    defaults: dict[str, Any] = {
        "network": network,
        "process": DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500, train_steps=500),
        "parameterization": AnchorResidual("index"),
        "space": Pixels(clip=False),
        "sampler": DoSMultistep(5),
        "norm": "l1",
    }
    return DoSSR(**{**defaults, **arguments})


METHODS = [make_resshift, make_dossr]


def make_batch(side: int = 16, keys: tuple[str, ...] = ("a", "b")) -> Batch:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(len(keys), 3, 4, 4, generator=generator) * 2 - 1
    hr = nn.functional.interpolate(smooth, size=side, mode="bicubic").clamp(-1, 1)
    lr = nn.functional.interpolate(hr, scale_factor=0.25, mode="area")
    up = nn.functional.interpolate(lr, size=side, mode="bicubic")
    return {"hr": hr, "lr": lr, "up": up, "key": list(keys)}


class OneBatch(Dataset[Batch]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Batch:
        return make_batch()


def fit(method: DiffusionModule, steps: int) -> list[float]:
    losses: list[float] = []
    step = method.training_step
    method.training_step = lambda *a: losses.append(float((out := step(*a))["loss"])) or out  # type: ignore
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=steps, accelerator="cpu", enable_model_summary=False, barebones=False, **quiet)
    trainer.fit(method, DataLoader(OneBatch(), batch_size=None))
    return losses


@pytest.mark.parametrize("make", METHODS)
def test_an_untrained_network_returns_the_enlarged_image(make: Any) -> None:
    """A residual of 0 leaves nothing but the start image, whatever noise the steps drew."""
    batch = make_batch()
    torch.testing.assert_close(make().super_resolve(batch), batch["up"].clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", METHODS)
def test_training_lowers_the_loss(make: Any) -> None:
    torch.manual_seed(0)
    losses = fit(make(optimizer=lambda parameters: torch.optim.Adam(parameters, 2e-3)), 20)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("make", METHODS)
def test_sizes_beyond_the_stride_are_padded_and_cropped(make: Any) -> None:
    batch = make_batch(44)
    assert make().super_resolve(batch).shape == (2, 3, 44, 44)


@pytest.mark.parametrize("make", METHODS)
def test_yoda_is_an_overlay(make: Any) -> None:
    method = make(region=YODA(Sobel(), lower_bound=0.2))
    batch = make_batch()
    assert method.super_resolve(batch).isfinite().all()
    assert fit(method, 1)


@pytest.mark.parametrize("parameterization", [Clean("index"), ShiftedEpsilon()])
def test_other_parameterizations_of_dossr_sample(parameterization: Clean) -> None:
    method = make_dossr(parameterization=parameterization)
    assert method.super_resolve(make_batch()).isfinite().all()


def test_resshift_can_be_shown_the_image_as_it_came() -> None:
    batch = make_batch()
    for method, shown in ((make_resshift(condition_on="lr"), "lr"), (make_resshift(), "up")):
        assert method.condition(*method.anchored(batch))["image"] is batch[shown]


def trained(make: Any) -> DiffusionModule:
    """A method whose samples depend on the noise."""
    torch.manual_seed(1)
    method = make()
    for parameter in method.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return method


@pytest.mark.parametrize("make", METHODS)
def test_several_draws(make: Any) -> None:
    method, batch = trained(make), make_batch()
    single = method.predict_step(batch, 0)
    assert set(single) == {"sr"}
    method.draws = 3
    images = [
        method.super_resolve({**batch, "key": [f"{key}{suffix}" for key in batch["key"]]})
        for suffix in ("", ", draw 2", ", draw 3")
    ]
    predicted = method.predict_step(batch, 0)
    torch.testing.assert_close(predicted["sr"], torch.stack(images).mean(0))
    torch.testing.assert_close(predicted["std"], torch.stack(images).std(0), atol=1e-6, rtol=1e-4)
    assert predicted["std"].max() > 0


def test_no_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="draws must be at least 1"):
        make_dossr(draws=0)


class Distance(nn.Module):
    """Stands in for LPIPS's network, whose weights are not part of the project."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def load(self) -> None:
        self.requires_grad_(False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return (self.weight * (image - target).abs()).mean(dim=(1, 2, 3))


def test_perceptual_term(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(resshift, "LPIPS", lambda backbone: asked.append(backbone) or Distance())
    method, batch = make_resshift(perceptual_weight=0.5), make_batch()
    method.setup("fit")
    assert asked == ["vgg"]
    assert "perceptual.weight" in method.frozen_keys()
    noised = method.noised(*method.anchored(batch))
    output = torch.zeros_like(noised.x0, requires_grad=True)
    term = method.losses(batch, noised, output)["lpips"]
    torch.testing.assert_close(term, 0.25 * (noised.anchor.clamp(-1, 1) - batch["hr"]).abs().mean())
    term.backward()
    assert output.grad is not None and output.grad.abs().sum() > 0


def test_no_perceptual_network_is_loaded_to_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resshift, "LPIPS", lambda *_, **__: pytest.fail("loaded"))
    make_resshift(perceptual_weight=0.5).setup("predict")
    make_resshift().setup("fit")


MODEL = "--model.init_args"
VQ, RESTORER = f"{MODEL}.space.init_args.autoencoder.init_args.weights", f"{MODEL}.restorer_weights"
BASE, DINO = f"{MODEL}.network.init_args.weights", f"{MODEL}.region.init_args.attention.init_args.weights"


@pytest.mark.parametrize(
    ("experiment", "option", "value", "said"),
    [
        ("resshift_pixel", f"{MODEL}.sampler.init_args.steps", "16", r"with 16: set the sampler's steps to 1 to 15"),
        ("dossr_pixel", f"{MODEL}.sampler.init_args.steps", "500", r"with 500: set the sampler's steps to 1 to 499"),
        ("resshift_pixel", f"{MODEL}.perceptual_weight", "1", r"vgg16-397923af\.pth.*perceptual_weight 0"),
        ("resshift", VQ, "none", rf"none: no VQModel.*config\.json.*lightning import .*--autoencoder.*\[{VQ}\]"),
        ("dossr_sd21", BASE, "none", rf"none/unet: no UNet2DConditionModel.*hf download.*\[{BASE}\]"),
        ("srdiff_yoda", DINO, "nobody/none", rf"nobody/none of the attention map are neither.*\[{DINO}\]"),
        ("dossr_sd21", RESTORER, "none.pth", rf"none\.pth: no such.*RealESRNet_x4plus\.pth.*{RESTORER}"),
    ],
)
def test_what_is_asked_for_in_vain_is_one_message(
    experiment: str, option: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", *arguments(CONFIGS / f"{experiment}.yaml"), option, value])
    with pytest.raises(SystemExit, match=said):
        main()


@pytest.mark.parametrize("written", ["epsilon", "v_prediction"])
def test_a_base_that_writes_velocities_is_refused(written: str, isolated_environment: Path, tmp_path: Path) -> None:
    shutil.copytree(isolated_environment / "tiny" / "sd21", tmp_path / "sd21")
    (tmp_path / "sd21" / "scheduler").mkdir()
    config = {"_class_name": "DDIMScheduler", "prediction_type": written}
    (tmp_path / "sd21" / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    weights = {"model": {"init_args": {"network": {"init_args": {"weights": str(tmp_path / "sd21")}}}}}
    layers = arguments(CONFIGS / "dossr_sd21.yaml")[1::2]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"compose": layers, **weights}))
    if written == "epsilon":
        assert configured_model(tmp_path / "other.yaml")
        return
    with pytest.raises(CheckpointError, match=r"sd21/scheduler: .*weights is v_prediction.*2-1-base.*network"):
        configured_model(tmp_path / "other.yaml")


def test_the_wrong_file_is_no_wall_of_keys(tmp_path: Path) -> None:
    torch.save(make_dossr().network.state_dict(), tmp_path / "unet.pth")
    with pytest.raises(CheckpointError, match=r"unet.pth: does not fit RRDBNet as configured: Missing key") as refused:
        load_network(RRDBNet(4), tmp_path / "unet.pth")
    assert len(str(refused.value)) < 500
