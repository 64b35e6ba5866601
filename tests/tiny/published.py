"""State dicts under the names that papers published them with, from tiny models of the classes we load them into."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_modules.published.schedule_table import table

State = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
WHOLE = {
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "controlnet_mid_block.": "middle_block_out.0.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}


def ldm_unet(state: Mapping[str, Tensor], layers: int) -> State:
    """A UNet or ControlNet as the latent diffusion code names it."""
    attended = {match[0] for key in state if (match := re.match(r"up_blocks\.\d+\.attentions", key))}
    return {_unet_key(key, layers, attended): value for key, value in state.items()}


def _unet_key(key: str, layers: int, attended: set[str]) -> str:
    inner = re.match(r"(.*\.resnets\.\d+)\.(\w+)\.(.*)", key)
    name = f"{inner[1]}.{RESNET[inner[2]]}.{inner[3]}" if inner else key
    for ours, theirs in WHOLE.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    name = re.sub(r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", name)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if not found:
        return name
    level, kind, layer, rest = int(found[2]), found[3], int(found[4]), found[5]
    start = level * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{start + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        part = 2 if f"up_blocks.{level}.attentions" in attended else 1
        return f"output_blocks.{start + layers}.{part}.{rest}"
    side, first = ("input", start + 1) if found[1] == "down" else ("output", start)
    return f"{side}_blocks.{first + layer}.{int(kind == 'attentions')}.{rest}"


def ldm_autoencoder(state: Mapping[str, Tensor], levels: int) -> State:
    """An autoencoder as the latent diffusion code names it; its attention as 1x1 convolutions."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", key)
        name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
        name = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up.{levels - 1 - int(found[1])}.", name)
        name = name.replace(".upsamplers.0.", ".upsample.").replace("conv_norm_out", "norm_out")
        name = re.sub(r"(\.up\.\d+)\.resnets\.", r"\1.block.", name).replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        if found := re.match(r"(.*)\.mid_block\.attentions\.0\.(.*)\.(weight|bias)", name):
            name = f"{found[1]}.mid.attn_1.{attention[found[2]]}.{found[3]}"
            value = value[:, :, None, None] if value.dim() == 2 else value
        renamed[name] = value
    return renamed


def open_clip(state: Mapping[str, Tensor]) -> State:
    """A text tower as OpenCLIP names it, with the layer and the projection that Stable Diffusion does not use."""
    renamed: State = {}
    for key, value in state.items():
        name = key.removeprefix("text_model.")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        name = name.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
        name = name.replace("encoder.layers", "transformer.resblocks").replace("layer_norm", "ln_")
        name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("self_attn", "attn")
        if found := re.match(r"(.*\.attn)\.([qkv])_proj\.(.*)", name):
            name = f"{found[1]}.in_proj_{found[3]}"
            value = torch.cat([renamed[name], value]) if name in renamed else value
        renamed[name] = value
    layers = 1 + max(int(key.split(".")[2]) for key in renamed if key.startswith("transformer."))
    unused = {
        re.sub(r"resblocks\.0\.", f"resblocks.{layers}.", key): torch.randn_like(value)
        for key, value in renamed.items()
        if key.startswith("transformer.resblocks.0.")
    }
    return {**renamed, **unused, "text_projection": torch.randn(4, 4), "logit_scale": torch.zeros(())}


def in_order(state: Mapping[str, Tensor]) -> State:
    """Keys ordered so that q, k and v of each layer follow each other."""
    rank = {"q": 0, "k": 1, "v": 2}

    def place(key: str) -> tuple[str, int]:
        found = re.match(r"(.*)\.([qkv])_proj\.(.*)", key)
        return (f"{found[1]}.{found[3]}", rank[found[2]]) if found else (key, 0)

    return {key: state[key] for key in sorted(state, key=place)}


def published_dossr(model: Any, text: Mapping[str, Tensor], eta: Tensor) -> State:
    """The flat checkpoint that the public DoSSR code writes, of a `DoSSRStableDiffusion` of ours."""
    network, autoencoder = model.network, model.space.autoencoder.model
    layers, levels = network.unet.config.layers_per_block, len(autoencoder.config.block_out_channels)
    control = dict(network.controlnet.state_dict())
    hint = control.pop("controlnet_cond_embedding.weight")
    control["conv_in.weight"] = torch.cat([control["conv_in.weight"], hint], dim=1)
    first_stage = ldm_autoencoder(autoencoder.state_dict(), levels)
    schedule = table(model.process.schedule)
    parts = {
        "model.diffusion_model.": ldm_unet(network.unet.state_dict(), layers),
        "control_model.": ldm_unet(control, layers),
        "first_stage_model.": first_stage,
        "cond_encoder.": {key: first_stage[key] for key in first_stage if key.startswith(("encoder.", "quant_conv."))},
        "cond_stage_model.model.": open_clip(in_order(text)),
        "preprocess_model.": basicsr(model.restorer.state_dict()),
        "": {**{key: value.float() for key, value in schedule.items()}, "logvar": torch.zeros(1000)},
    }
    parts[""] |= {"lambdas": eta.float(), "one_minus_lambdas": (1 - eta).float()}
    return {prefix + key: value.clone() for prefix, part in parts.items() for key, value in part.items()}


def basicsr(state: Mapping[str, Tensor]) -> State:
    """An RRDB network as Real-ESRGAN's public files name it."""
    renamed = {}
    for key, value in state.items():
        name = key.replace("RRDB_trunk", "body").replace("RDB", "rdb").replace("trunk_conv", "conv_body")
        renamed[name.replace("upconv", "conv_up").replace("HRconv", "conv_hr")] = value
    return renamed
