"""DoSSR on Stable Diffusion and ResShift on VQ latents, with tiny random models in the hub's layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError, read_checkpoint
from lightning_modules.config import configured_model, load_method
from lightning_modules.config_files import CONFIGS
from lightning_modules.diffusion.color_fix import low_frequencies
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.guidance import ClassifierFreeGuidance, SelfAttentionGuidance
from lightning_modules.diffusion.parameterization import Clean, ShiftedEpsilon
from lightning_modules.diffusion.residual_shift import ResidualShift
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import ScaledLinear
from lightning_modules.diffusion.space import Latent
from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.dossr import DoSSRStableDiffusion
from lightning_modules.networks.attention_maps import Sobel
from lightning_modules.networks.autoencoder import KLAutoencoder, VQAutoencoder
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.sd21 import ControlledUNet
from lightning_modules.networks.unet_swin import UNetSwin
from lightning_modules.resshift import ResShift
from lightning_modules.running.experiment import run
from tests.tiny.experiments import arguments

SWIN: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "size": 16}
SWIN |= {"swin_width": 32, "head_channels": 16, "window": 4}


@pytest.fixture
def tiny(isolated_environment: Path) -> Path:
    return isolated_environment / "tiny"


def make_dossr(tiny: Path, tile: int | None = None, **changes: Any) -> DoSSRStableDiffusion:
    parts: dict[str, Any] = {
        "restorer": RRDBNet(4, nf=4, nb=1, gc=2),
        "restorer_weights": str(tiny / "realesrnet.pth"),
        "network": ControlledUNet(str(tiny / "sd21")),
        "process": DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500),
        "parameterization": ShiftedEpsilon(),
        "space": Latent(KLAutoencoder(str(tiny / "sd21"), tile=tile)),
        "sampler": DoSMultistep(2),
        "norm": "l1",
        "tile": tile,
    }
    return DoSSRStableDiffusion(**{**parts, **changes})


def make_resshift(tiny: Path, **changes: Any) -> ResShift:
    parts: dict[str, Any] = {
        "network": UNetSwin(**SWIN),
        "process": ResidualShift(steps=4, min_noise_level=0.2),
        "parameterization": Clean("index", input_scale="latent"),
        "space": Latent(VQAutoencoder(str(tiny / "vq_f4"))),
        "sampler": Ancestral(4),
        "condition_on": "lr",
    }
    return ResShift(**{**parts, **changes})


METHODS = [make_dossr, make_resshift]


def make_batch(side: int = 64, keys: tuple[str, ...] = ("a", "b")) -> Batch:
    generator = torch.Generator().manual_seed(0)
    hr = nn.functional.interpolate(torch.rand(len(keys), 3, 8, 8, generator=generator), size=side, mode="bicubic")
    hr = (hr * 2 - 1).clamp(-1, 1)
    lr = nn.functional.interpolate(hr, scale_factor=0.25, mode="area")
    return {"hr": hr, "lr": lr, "up": nn.functional.interpolate(lr, size=side, mode="bicubic"), "key": list(keys)}


def step(method: Any, batch: Batch) -> Tensor:
    method.log = lambda *arguments, **options: None
    loss: Tensor = method.train().training_step(batch, 0)["loss"]
    method.eval()
    return loss


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("side", [64, 68, 20, 12])
def test_every_size_is_padded_and_cropped_back(make: Any, tiny: Path, side: int) -> None:
    sr = make(tiny).eval().super_resolve(make_batch(side))
    assert sr.shape == (2, 3, side, side) and sr.dtype == torch.float32 and sr.isfinite().all()


@pytest.mark.parametrize("make", METHODS)
def test_an_image_does_not_depend_on_its_batch(make: Any, tiny: Path) -> None:
    method, batch = make(tiny).eval(), make_batch()
    alone: Batch = {"lr": batch["lr"][1:], "up": batch["up"][1:], "key": ["b"]}
    torch.testing.assert_close(method.super_resolve(alone), method.super_resolve(batch)[1:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", METHODS)
def test_yoda_is_an_overlay(make: Any, tiny: Path) -> None:
    method, batch = make(tiny, region=YODA(Sobel(), lower_bound=0.2)), make_batch()
    assert step(method, batch).isfinite()
    assert method.super_resolve(batch).isfinite().all()


@pytest.mark.parametrize("make", METHODS)
def test_bfloat16(make: Any, tiny: Path) -> None:
    method, batch = make(tiny), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        step(method, batch).backward()
        state = method.space.encode(batch["hr"], batch["up"])
        assert state.dtype == method.space.decode(state, batch["up"]).dtype == torch.float32
        assert method.super_resolve(batch).isfinite().all()


def test_only_training_targets_are_drawn_from_the_posterior(tiny: Path) -> None:
    space, image = make_dossr(tiny).space, make_batch()["hr"]
    assert torch.equal(space.encode(image, image), space.encode(image, image))
    drawn = [space.encode_target(image, image) for _ in range(2)]
    assert not torch.equal(*drawn)
    mode = space.autoencoder.model.encode(image).latent_dist.mode() * space.autoencoder.model.config.scaling_factor
    torch.testing.assert_close(space.encode(image, image), mode)


def test_sides_that_have_no_whole_latent_are_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"60x60 image.*multiples of 8.*data\.init_args\.crop"):
        step(make_dossr(tiny), make_batch(60))


def test_guidance_works_in_latents(tiny: Path) -> None:
    batch = make_batch(128)  # its middle attention sees four tokens; one alone receives the mean
    plain = make_dossr(tiny).eval().super_resolve(batch)
    for guidance in (ClassifierFreeGuidance(3.0), SelfAttentionGuidance(scale=5.0, kernel=3, sigma=1.0)):
        assert not torch.equal(make_dossr(tiny, guidance=[guidance]).eval().super_resolve(batch), plain)


def test_the_restorer_runs_once_for_each_batch(tiny: Path) -> None:
    method, calls = make_dossr(tiny), []
    method.restorer.register_forward_hook(lambda *arguments: calls.append(1))
    step(method, make_batch())
    assert len(calls) == 1
    method.super_resolve(make_batch())
    assert len(calls) == 2
    method.super_resolve(make_batch(128))
    assert len(calls) == 3


def test_the_prompt_is_empty_in_training(tiny: Path) -> None:
    method, batch = make_dossr(tiny), make_batch()
    network = method.network
    batch, anchor = method.anchored(batch)
    assert torch.equal(method.train().condition(batch, anchor)["text"], network.empty_text.expand(2, -1, -1))
    assert torch.equal(method.eval().condition(batch, anchor)["text"], network.text.expand(2, -1, -1))
    assert torch.equal(method.null_condition(batch, anchor)["text"], network.empty_text.expand(2, -1, -1))
    assert torch.equal(method.condition(batch, anchor)["hint"], anchor)
    assert torch.equal(anchor, method.space.encode(method.start_image(batch), batch["up"]))


def test_the_colours_are_the_restored_images(tiny: Path) -> None:
    batch = make_batch()
    for fix in ("wavelet", "adain"):
        method = make_dossr(tiny, color_fix=fix).eval()
        with torch.no_grad():
            sr, restored = method.enlarge(batch, None), method.start_image(batch)
        if fix == "wavelet":
            torch.testing.assert_close(
                low_frequencies(sr).mean((2, 3)), low_frequencies(restored).mean((2, 3)), atol=5e-2, rtol=0
            )
        else:
            torch.testing.assert_close(sr.mean((2, 3)), restored.mean((2, 3)), atol=1e-4, rtol=0)


def test_tiles_enlarge_what_is_too_large(tiny: Path) -> None:
    batch = make_batch(192, ("a",))
    whole, parts = make_dossr(tiny).eval(), make_dossr(tiny, tile=128).eval()
    assert torch.equal(parts.super_resolve(make_batch()), whole.super_resolve(make_batch()))
    reference, tiled = whole.super_resolve(batch), parts.super_resolve(batch)
    assert (reference - tiled).abs().mean() < 0.5 * reference.std()
    seams = tiled.diff(dim=-1).abs().mean((0, 1, 2))
    assert seams.max() < 3 * seams.median()


def test_a_restorer_of_another_scale_is_refused(tiny: Path, tmp_path: Path) -> None:
    torch.save(RRDBNet(2, nf=4, nb=1, gc=2).state_dict(), tmp_path / "x2.pth")
    method = make_dossr(tiny, restorer=RRDBNet(2, nf=4, nb=1, gc=2), restorer_weights=str(tmp_path / "x2.pth"))
    with pytest.raises(ValueError, match=r"restorer enlarges by 2, but the data by 4"):
        method.super_resolve(make_batch())


def test_an_absent_restorer_is_named(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights/none\.pth: no such checkpoint"):
        make_dossr(tiny, restorer_weights="weights/none.pth")


# The whole path.


def test_train_save_load_predict(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained = run(["fit", *arguments(CONFIGS / "dossr_sd21.yaml")]).model
    path = next(tmp_path.glob("runs/**/last.ckpt"))
    stored = read_checkpoint(path)["state_dict"]
    names = {f"network.controlnet.{key}" for key in trained.network.controlnet.state_dict()}
    assert set(stored) == names | {"network.signature"}
    assert any(stored[f"network.controlnet.{part}.weight"].abs().sum() > 0 for part in ("controlnet_mid_block",))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("wide", (23, 9)), ("small", (5, 4))):
        Image.fromarray(np.full((size[1], size[0], 3), 120, np.uint8)).save(photos / f"{name}.png")
    cpu = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    run(["predict", "--ckpt_path", str(path), "--input", str(photos), "--output", str(tmp_path / "out"), *cpu])
    sizes = {file.stem: Image.open(file).size for file in (tmp_path / "out").glob("*.png")}
    assert sizes == {"wide": (92, 36), "small": (20, 16)}
    content = torch.load(path, weights_only=True)
    content["state_dict"]["network.signature"] += 0.5
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="trained for another base"):
        load_method(path)


def test_the_gradient_of_lpips_passes_the_quantisation(tiny: Path) -> None:
    space = make_resshift(tiny).space
    state = torch.randn(1, 3, 16, 16, requires_grad=True)
    space.decode(state, state).square().sum().backward()
    assert state.grad is not None and bool((state.grad.abs().sum((2, 3)) > 0).all())
    assert all(parameter.grad is None for parameter in space.parameters())


def test_tiles_and_yoda_are_overlays_on_the_experiment(tiny: Path, tmp_path: Path) -> None:
    layers = [*arguments(CONFIGS / "dossr_sd21.yaml")[1::2]]
    layers += [str(CONFIGS / name) for name in ("variant/dossr_tiled.yaml", "region/yoda_sobel.yaml")]
    (tmp_path / "composed.yaml").write_text(yaml.safe_dump({"compose": layers}))
    model, _ = configured_model(tmp_path / "composed.yaml")
    assert isinstance(model, DoSSRStableDiffusion) and isinstance(model.region, YODA)
    autoencoder = model.space.autoencoder.model
    assert model.tiles is not None and model.tiles.side * model.space.factor == 512
    assert (autoencoder.use_tiling, autoencoder.tile_latent_min_size) == (True, 64)
    assert model.eval().super_resolve(make_batch()).isfinite().all()
