"""Every general sampler, laid over every kind of process: it draws images, or is refused with the reason."""

from pathlib import Path

import pytest
import torch
import yaml

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError
from lightning_modules.cli import CONFIGS, configured_model
from tests.tiny.experiments import tiny_overlays

OVERLAYS = ["ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun"]  # the others belong to one process
HOSTS = ["sr3", "srdiff", "resshift_pixel", "dossr_pixel", "edm", "relay_x4"]
# What a host cannot do, and how the refusal begins.
REFUSED = {
    ("relay_x4", "dpmpp_2m"): "the mean of Relay is no multiple of x0",
    ("relay_x4", "dpmpp_2m_sde"): "the mean of Relay is no multiple of x0",
    ("relay_x4", "heun"): "karras spacing needs a process with a table of steps; Relay has none",
    ("edm", "heun"): "karras spacing needs a process with a table of steps; EDM has none",
}


def composed(host: str, overlay: str, folder: Path) -> Path:
    """A config of the host in tiny, with the overlay's sampler in three steps."""
    config = CONFIGS / f"{host}.yaml"
    steps = {"model": {"init_args": {"sampler": {"init_args": {"steps": 3}}}}}
    layers = [config, *tiny_overlays(config), CONFIGS / "sampler" / f"{overlay}.yaml"]
    path = folder / "composed.yaml"
    path.write_text(yaml.safe_dump({"compose": [str(layer) for layer in layers], **steps}))
    return path


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("host", HOSTS)
def test_a_sampler_draws_images_or_says_why_not(host: str, overlay: str, tmp_path: Path) -> None:
    path = composed(host, overlay, tmp_path)
    reason = REFUSED.get((host, overlay))
    if reason is not None:
        with pytest.raises(CheckpointError, match=reason):
            configured_model(path)
        return
    model, config = configured_model(path)
    scale = config["data"]["init_args"]["scale"]
    lr = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    batch = Batch(lr=lr, up=torch.nn.functional.interpolate(lr, scale_factor=float(scale)), key=["a"])
    images = model.eval().super_resolve(batch)
    assert images.shape == batch["up"].shape
    assert images.isfinite().all()
    assert model.protocol().startswith(type(model.sampler).__name__.lower()[:3])
