"""Every sampler, laid over every kind of process: it draws images, or is refused with the reason."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError
from lightning_modules.config import configured_model
from lightning_modules.config_files import CONFIGS, layers
from tests.tiny.experiments import tiny_overlays

SAMPLERS = sorted(path.stem for path in (CONFIGS / "sampler").glob("*.yaml"))
OVERLAYS = [name for name in SAMPLERS if name != "skip_policy"]  # which belongs to the process it was trained on
HOSTS = ["sr3", "srdiff", "resshift_pixel", "dossr_pixel", "flow", "edm", "relay_x4"]
# What a host cannot do, and how the refusal begins.
REFUSED = {
    ("relay_x4", "dpmpp_2m"): "the mean of RelayProcess is not a multiple of x0",
    ("relay_x4", "dpmpp_2m_sde"): "the mean of RelayProcess is not a multiple of x0",
    ("relay_x4", "heun"): "the mean of RelayProcess is not a multiple of x0",
    ("relay_x4", "dos"): "the mean of RelayProcess is not a multiple of x0",
    ("flow", "heun"): "karras spacing needs a process with a table of steps; RectifiedFlow has none",
    ("edm", "dos"): "DoSMultistep needs a process with a Markov posterior",
    ("edm", "dpmpp_2m_sde"): "DPMSolverPlusPlus with stochastic: true needs a process with a Markov posterior",
    ("edm", "relay_heun"): "RelayHeun continues a RelayProcess, not EDMProcess",
    **{(host, "edm_heun"): "EDMHeun needs a process that adds noise without shrinking" for host in HOSTS[:5]},
    **{(host, "relay_heun"): "RelayHeun continues a RelayProcess, not" for host in HOSTS[:5]},
}


def composed(host: str, overlay: str, folder: Path) -> Path:
    """A config of the host in tiny, with the overlay's sampler in three steps."""
    config = CONFIGS / f"{host}.yaml"
    # Of the relay's levels, which end far above where it starts, 8 leave three.
    steps = {"model": {"init_args": {"sampler": {"init_args": {"steps": 8 if overlay == "relay_heun" else 3}}}}}
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


def arguments_of(class_path: str) -> set[str]:
    module, _, name = class_path.rpartition(".")
    return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


@pytest.mark.parametrize("overlay", SAMPLERS)
def test_an_overlay_leaves_no_argument_to_the_sampler_that_it_replaces(overlay: str) -> None:
    parts = {}
    for name in SAMPLERS:
        parts[name] = {"init_args": {}}
        for layer in layers(CONFIGS / "sampler" / f"{name}.yaml"):
            part = yaml.safe_load(layer.read_text())["model"]["init_args"]["sampler"]
            parts[name] = {**parts[name], **part, "init_args": {**parts[name]["init_args"], **part["init_args"]}}
    own = parts[overlay]["class_path"]
    others = {part["class_path"] for part in parts.values()} - {own}
    inherited = set[str]().union(*map(arguments_of, others))
    assert arguments_of(own) & inherited <= set(parts[overlay]["init_args"])
