"""Key names of the latent diffusion code, which papers publish weights under, as diffusers and transformers have them.

Every tensor goes in once and comes out once; what is not understood keeps its name, and so fails to load.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

RESNET = {
    r"in_layers\.0\.": "norm1.",
    r"in_layers\.2\.": "conv1.",
    r"emb_layers\.1\.": "time_emb_proj.",
    r"out_layers\.0\.": "norm2.",
    r"out_layers\.3\.": "conv2.",
    r"skip_connection\.": "conv_shortcut.",
}
UNET = {
    r"time_embed\.0\.": "time_embedding.linear_1.",
    r"time_embed\.2\.": "time_embedding.linear_2.",
    r"input_blocks\.0\.0\.": "conv_in.",
    r"middle_block\.0\.": "mid_block.resnets.0.",
    r"middle_block\.1\.": "mid_block.attentions.0.",
    r"middle_block\.2\.": "mid_block.resnets.1.",
    r"middle_block_out\.0\.": "controlnet_mid_block.",
    r"zero_convs\.(\d+)\.0\.": r"controlnet_down_blocks.\1.",
    r"out\.0\.": "conv_norm_out.",
    r"out\.2\.": "conv_out.",
}
AUTOENCODER = {
    r"(encoder|decoder)\.mid\.block_1\.": r"\1.mid_block.resnets.0.",
    r"(encoder|decoder)\.mid\.block_2\.": r"\1.mid_block.resnets.1.",
    r"(encoder|decoder)\.mid\.attn_1\.": r"\1.mid_block.attentions.0.",
    r"encoder\.down\.(\d+)\.block\.": r"encoder.down_blocks.\1.resnets.",
    r"encoder\.down\.(\d+)\.downsample\.": r"encoder.down_blocks.\1.downsamplers.0.",
    r"decoder\.up_blocks\.(\d+)\.block\.": r"decoder.up_blocks.\1.resnets.",
    r"decoder\.up_blocks\.(\d+)\.upsample\.": r"decoder.up_blocks.\1.upsamplers.0.",
    r"(encoder|decoder)\.norm_out\.": r"\1.conv_norm_out.",
    r"(.*)\.nin_shortcut\.": r"\1.conv_shortcut.",
}
ATTENTION = {r"norm\.": "group_norm.", r"([qkv])\.": r"to_\1.", r"proj_out\.": "to_out.0."}
TEXT = {
    r"positional_embedding": "embeddings.position_embedding.weight",
    r"token_embedding\.": "embeddings.token_embedding.",
    r"ln_final\.": "final_layer_norm.",
    r"transformer\.resblocks\.(\d+)\.": r"encoder.layers.\1.",
    r"(.*)\.attn\.out_proj\.": r"\1.self_attn.out_proj.",
    r"(.*)\.ln_([12])\.": r"\1.layer_norm\2.",
    r"(.*)\.mlp\.c_fc\.": r"\1.mlp.fc1.",
    r"(.*)\.mlp\.c_proj\.": r"\1.mlp.fc2.",
}
DOSSR = {
    "model.diffusion_model.": "unet",
    "control_model.": "controlnet",
    "first_stage_model.": "vae",
    "cond_encoder.": "hint encoder",
    "cond_stage_model.model.": "text",
    "preprocess_model.": "restorer",
}


def substituted(key: str, rules: Mapping[str, str]) -> str:
    """`key` with every rule that its beginning matches applied, in order."""
    for pattern, replacement in rules.items():
        key = re.sub(f"^{pattern}", replacement, key)
    return key


def unet(state: Mapping[str, Tensor]) -> State:
    """A UNet, or a ControlNet without the convolution of its hint."""
    first = min((int(key.split(".")[1]) for key in state if re.match(r"input_blocks\.\d+\.0\.op\.", key)), default=1)
    return {_unet_key(key, first): value for key, value in state.items()}


def _unet_key(key: str, per_level: int) -> str:
    found = re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)", key)
    if found is None or key.startswith("input_blocks.0."):
        key = substituted(key, UNET)
    else:
        side, index, part, rest = found[1], int(found[2]), found[3], found[4]
        level, layer = divmod(index - (side == "input"), per_level)
        block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
        if rest.startswith(("op.", "conv.")):
            sampler = "downsamplers" if side == "input" else "upsamplers"
            return f"{block}.{sampler}.0.conv.{rest.partition('.')[2]}"
        key = f"{block}.{'resnets' if part == '0' else 'attentions'}.{layer}.{rest}"
    return _inside(key, r".*\.resnets\.\d+\.", RESNET)


def _inside(key: str, place: str, rules: Mapping[str, str]) -> str:
    found = re.match(place, key)
    return found[0] + substituted(key[found.end() :], rules) if found else key


def controlnet(state: Mapping[str, Tensor]) -> State:
    """DoSSR's ControlNet: its input convolution of state and hint becomes two."""
    renamed = unet(state)
    both = renamed["conv_in.weight"]
    channels = both.shape[1] // 2
    renamed["conv_in.weight"] = both[:, :channels].clone()
    renamed["controlnet_cond_embedding.weight"] = both[:, channels:].clone()
    return renamed


def autoencoder(state: Mapping[str, Tensor]) -> State:
    """An `AutoencoderKL` or `VQModel`; the 1x1 convolutions of its attention become linear layers."""
    top = max((int(key.split(".")[2]) for key in state if key.startswith("decoder.up.")), default=0)
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up_blocks.{top - int(found[1])}.", key)
        key = _inside(substituted(key, AUTOENCODER), r".*\.attentions\.0\.", ATTENTION)
        linear = ".attentions.0." in key and value.dim() == 4
        renamed[key] = value.flatten(1) if linear else value
    return renamed


def text_encoder(state: Mapping[str, Tensor], layers: int) -> State:
    """OpenCLIP's text tower as a `CLIPTextModel` of `layers` layers; what comes after them is not used there."""
    renamed: State = {}
    for key, value in state.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.", key)
        if (layer and int(layer[1]) >= layers) or key in ("text_projection", "logit_scale", "attn_mask"):
            continue
        key = substituted(key, TEXT)
        if found := re.match(r"(.*)\.attn\.in_proj_(weight|bias)", key):
            names = [f"{found[1]}.self_attn.{name}_proj.{found[2]}" for name in "qkv"]
            renamed |= dict(zip(names, value.chunk(3), strict=True))
        else:
            renamed[key] = value
    return renamed


def dossr_parts(state: Mapping[str, Tensor]) -> dict[str, State]:
    """The parts of a published DoSSR checkpoint by name, each under its published keys without prefix.

    Raises:
        ValueError: tensors belong to no part, a part has none, or the encoder of the hint is another than the
            autoencoder's.
    """
    parts: dict[str, State] = {name: {} for name in DOSSR.values()}
    unknown = []
    for key, value in state.items():
        prefix = next((prefix for prefix in DOSSR if key.startswith(prefix)), None)
        if prefix is not None:
            parts[DOSSR[prefix]][key.removeprefix(prefix)] = value
        elif key != "logvar":
            unknown.append(key)
    if unknown:
        raise ValueError(f"{len(unknown)} tensors are of no part of DoSSR, such as {sorted(unknown)[0]}")
    if absent := [prefix for prefix, name in DOSSR.items() if not parts[name]]:
        raise ValueError(f"is no complete DoSSR checkpoint: nothing in it begins with {', '.join(absent)}")
    for key, value in parts.pop("hint encoder").items():
        if key not in parts["vae"] or not torch.equal(value, parts["vae"][key]):
            raise ValueError(
                f"cond_encoder.{key} differs from the autoencoder's own: the hint was encoded by another network, "
                "which this implementation does not have"
            )
    return parts
