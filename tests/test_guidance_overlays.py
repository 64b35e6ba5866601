"""Guidance and skip policies laid over the methods: they act where they can, and elsewhere say what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, write_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.config_files import CONFIGS
from lightning_modules.super_resolver import SuperResolver
from tests.tiny.experiments import tiny_overlays

PIXELS = ["sr3", "sr3_yoda", "resshift_pixel", "dossr_pixel", "relay_x4", "edm"]
LATENTS = ["resshift", "dossr_sd21"]
HOSTS = [*PIXELS, *LATENTS]


def composed(host: str, folder: Path, overlay: str, content: dict[str, Any] | None = None) -> Path:
    """A config of the host in tiny under an overlay, and `content` on top."""
    config = CONFIGS / f"{host}.yaml"
    layers = [config, *tiny_overlays(config), *([CONFIGS / overlay] if overlay else [])]
    path = folder / f"{host}.yaml"
    path.write_text(yaml.safe_dump({"compose": [str(layer) for layer in layers], **(content or {})}))
    return path


def guided(host: str, folder: Path, **changes: Any) -> Path:
    """A host under the self-attention overlay, some of whose arguments are changed."""
    name = "sag_latent" if host in LATENTS else "sag"
    overlay = yaml.safe_load((CONFIGS / "guidance" / f"{name}.yaml").read_text())
    (sag,) = overlay["model"]["init_args"]["guidance+"]
    sag["init_args"] |= changes
    return composed(host, folder, "", overlay)


def batch_for(config: dict[str, Any], side: int = 16) -> Batch:
    scale = config["data"]["init_args"]["scale"]
    lr = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    up = torch.nn.functional.interpolate(lr, scale_factor=float(scale), mode="bicubic")
    return Batch(lr=lr, up=up, key=["a", "b"])


def sharpened(model: DiffusionModule) -> None:
    """Random weights large enough for uneven attention and visible outputs."""
    torch.manual_seed(0)
    for parameter in model.network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)


@pytest.mark.parametrize("host", HOSTS)
def test_guidance_acts_on_every_method(host: str, tmp_path: Path) -> None:
    model, config = configured_model(guided(host, tmp_path))
    assert isinstance(model, DiffusionModule) and len(model.guidance) == 1
    sharpened(model.eval())
    batch = batch_for(config, side=16 if host in PIXELS else 64)  # the innermost attention needs more than one token
    calls: list[int] = []
    model.network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    steered = model.super_resolve(batch)
    spent, model.guidance = len(calls), []
    plain = model.super_resolve(batch)
    assert steered.isfinite().all()
    assert (steered - plain).abs().max() > 1e-3
    assert spent == 2 * (len(calls) - spent)


@pytest.mark.parametrize("host", HOSTS)
def test_guidance_of_scale_zero_changes_no_bit(host: str, tmp_path: Path) -> None:
    model, config = configured_model(guided(host, tmp_path, scale=0.0))
    assert isinstance(model, DiffusionModule)
    sharpened(model.eval())
    steered = model.super_resolve(batch_for(config))
    model.guidance = []
    assert torch.equal(steered, model.super_resolve(batch_for(config)))


def test_srdiff_is_offered_the_uniform_mask(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"SRDiffUNet has no softmax self-attention.*mask: uniform"):
        configured_model(guided("srdiff", tmp_path))
    model, config = configured_model(guided("srdiff", tmp_path, mask="uniform"))
    assert model.eval().super_resolve(batch_for(config)).isfinite().all()


def test_a_wrong_layer_is_named_beside_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no self-attention at layer: mid.1.attn; it has .*mid.0.attn"):
        configured_model(guided("sr3", tmp_path, layer="mid.1.attn"))


def test_classifier_free_guidance_needs_a_null_condition(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="needs a method with a null condition"):
        configured_model(composed("sr3", tmp_path, "guidance/cfg.yaml"))


def test_a_skip_policy_is_laid_over_a_method_that_fits(tmp_path: Path) -> None:
    policy = tmp_path / "policy.ckpt"  # untrained: what it decides is of no interest here
    write_checkpoint(*configured_model(composed("skipdiff_sr3", tmp_path, "")), policy)
    sampler = {"model": {"init_args": {"sampler": {"init_args": {"checkpoint": str(policy)}}}}}

    def host(name: str) -> tuple[SuperResolver, dict[str, Any]]:
        return configured_model(composed(name, tmp_path, "sampler/skip_policy.yaml", sampler))

    model, config = host("sr3_cosine_16_128")
    assert model.eval().super_resolve(batch_for(config)).isfinite().all()
    assert model.protocol() == "skip-respaced-10-100"
    with pytest.raises(CheckpointError, match=r"policy was trained at noise levels from 0\.1671"):
        host("sr3_ffhq_16_128")
    with pytest.raises(CheckpointError, match="do not fit the base's process ResidualShift of 15 steps"):
        host("resshift_pixel")
