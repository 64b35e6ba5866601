"""DoSSR's weights as its public code stores them: the trained ControlNet and every frozen model around it.

The ControlNet alone is taken over. The frozen models come from their own sources (see `DoSSRStableDiffusion`), so what
the file holds of them is compared with what is configured.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.dossr import DoSSR, DoSSRStableDiffusion
from lightning_modules.networks.sd21 import text_encoder
from lightning_modules.published import basicsr_names, ldm_names
from lightning_modules.published.schedule_table import without_table

PARTS = {
    "model.diffusion_model.": "unet",
    "control_model.": "controlnet",
    "first_stage_model.": "autoencoder",
    "cond_encoder.": "hint encoder",
    "cond_stage_model.model.": "text encoder",
    "preprocess_model.": "restorer",
}
UNUSED = "logvar"  # a buffer of the latent diffusion code that DoSSR's loss leaves at 0
HALF_PRECISION = 2e-3  # relative difference of weights that were stored in half precision


def adapt(model: DoSSR | DoSSRStableDiffusion, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict: `control_model.*` becomes `network.controlnet.*`, under diffusers' names.

    Raises:
        ValueError: the model is not DoSSR on Stable Diffusion, or the file's schedule, shift, base, autoencoder, text
            encoder or restorer differ from the configured ones.
    """
    if not isinstance(model, DoSSRStableDiffusion):
        raise ValueError("published weights of DoSSR are of its Stable Diffusion form: give configs/dossr_sd21.yaml")

    parts = split(without_shift(without_table(state, model.process), model.process))
    encoder = text_encoder(model.network.weights)
    text = ldm_names.text_encoder(parts["text encoder"], layers=encoder.config.num_hidden_layers)

    check_same("unet", ldm_names.unet(parts["unet"]), model.network.unet)
    check_same("autoencoder", ldm_names.autoencoder(parts["autoencoder"]), model.space.autoencoder.model)
    check_same("text encoder", text, encoder)
    check_same("restorer", basicsr_names.rrdb(parts["restorer"]), model.restorer)

    controlnet = ldm_names.controlnet(parts["controlnet"])
    weights = {f"network.controlnet.{key}": value for key, value in controlnet.items()}
    return {**weights, "network.signature": model.network.signature}


def split(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts of a checkpoint by name, each under its published keys without prefix.

    Raises:
        ValueError: a tensor belongs to no part, a part is missing, or the hint was encoded by another network than the
            autoencoder's encoder.
    """
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in PARTS.values()}
    unknown = []
    for key, value in state.items():
        prefix = next((prefix for prefix in PARTS if key.startswith(prefix)), None)
        if prefix is not None:
            parts[PARTS[prefix]][key.removeprefix(prefix)] = value
        elif key != UNUSED:
            unknown.append(key)

    if unknown:
        raise ValueError(f"{len(unknown)} tensors are of no part of DoSSR, such as {sorted(unknown)[0]}")
    if missing := [prefix for prefix, name in PARTS.items() if not parts[name]]:
        raise ValueError(f"is no complete DoSSR checkpoint: nothing in it begins with {', '.join(missing)}")

    # Published files store the encoder twice; our model encodes the hint with the autoencoder itself.
    for key, value in parts.pop("hint encoder").items():
        if key not in parts["autoencoder"] or not torch.equal(value, parts["autoencoder"][key]):
            raise ValueError(
                f"cond_encoder.{key} differs from the autoencoder's own: the hint was encoded by another network, "
                "which this implementation does not have"
            )
    return parts


def without_shift(state: Mapping[str, Tensor], process: DomainShift) -> dict[str, Tensor]:
    """`state` without the tables of the shift, where it has them, after comparing them with the process's.

    Raises:
        ValueError: the file shifts otherwise.
    """
    t = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    shift = process.anchor_alpha(t) / process.signal(t)
    tables = {"lambdas": shift, "one_minus_lambdas": 1 - shift}

    for name, own in tables.items():
        stored = state.get(name, own)
        if stored.shape != own.shape or not torch.allclose(stored.double(), own, atol=1e-6):
            raise ValueError(f"{name}: the file shifts otherwise than the configured process; see shift_steps and ramp")
    return {key: value for key, value in state.items() if key not in tables}


def check_same(name: str, stored: Mapping[str, Tensor], module: nn.Module) -> None:
    """Compares a frozen part of the file with the configured one.

    Raises:
        ValueError: a tensor is missing, unknown or different.
    """
    # transformers 4 prefixes the text encoder's keys, 5 does not; position ids are no weights
    own = {key.removeprefix("text_model."): value for key, value in module.state_dict().items()}
    own.pop("embeddings.position_ids", None)

    if differing := sorted(stored.keys() ^ own.keys()):
        raise ValueError(f"{name}: {len(differing)} tensors are only in one of file and base, such as {differing[0]}")

    for key, value in stored.items():
        expected = own[key]
        same_shape = value.shape == expected.shape
        if not same_shape or not torch.allclose(value.to(expected), expected, rtol=HALF_PRECISION, atol=1e-5):
            raise ValueError(f"{name}: {key} in the file differs from the configured weights; it needs others")
