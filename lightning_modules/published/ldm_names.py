"""Key names of the latent diffusion code, and what diffusers and transformers call the same tensors.

Papers that build on Stable Diffusion publish their weights under the former. Each function takes the state dict of one
network and returns it under the latter. Every tensor goes in once and comes out once. A key that no rule knows keeps
its name, so that `load_state_dict` reports it.
"""

import re
from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]

# Below: regular expressions that match the beginning of a published key, and their replacements.

# Inside a residual block of a UNet.
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
# Inside an autoencoder's attention block.
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


def substituted(key: str, rules: Mapping[str, str]) -> str:
    """`key` after all rules, in order; a rule applies where it matches the beginning."""
    for pattern, replacement in rules.items():
        key = re.sub(f"^{pattern}", replacement, key)
    return key


def substituted_inside(key: str, block: str, rules: Mapping[str, str]) -> str:
    """As `substituted`, for what follows `block` in the key; a key outside such a block is returned unchanged."""
    found = re.match(block, key)
    return found[0] + substituted(key[found.end() :], rules) if found else key


def unet(state: Mapping[str, Tensor]) -> State:
    """A `UNet2DConditionModel`, or a `ControlNetModel` without the convolution of its hint."""
    # Published blocks are numbered through. A level ends with its downsampling convolution, so the index of the first
    # one is the number of blocks of a level.
    downsampling = [int(key.split(".")[1]) for key in state if re.match(r"input_blocks\.\d+\.0\.op\.", key)]
    per_level = min(downsampling, default=1)
    return {unet_key(key, per_level): value for key, value in state.items()}


def unet_key(key: str, per_level: int) -> str:
    """The key in diffusers' UNet, where a level holds `per_level` published blocks."""
    found = re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)", key)
    if found is None or key.startswith("input_blocks.0."):
        return substituted_inside(substituted(key, UNET), r".*\.resnets\.\d+\.", RESNET)

    side, index, part, rest = found[1], int(found[2]), found[3], found[4]
    is_input = side == "input"
    level, layer = divmod(index - is_input, per_level)  # input block 0 is the first convolution, of no level
    block = f"{'down' if is_input else 'up'}_blocks.{level}"

    if rest.startswith(("op.", "conv.")):
        return f"{block}.{'down' if is_input else 'up'}samplers.0.conv.{rest.partition('.')[2]}"
    if part == "0":
        return f"{block}.resnets.{layer}.{substituted(rest, RESNET)}"
    return f"{block}.attentions.{layer}.{rest}"


def controlnet(state: Mapping[str, Tensor]) -> State:
    """DoSSR's ControlNet; its input convolution, of state and hint together, becomes one of each."""
    renamed = unet(state)
    both = renamed["conv_in.weight"]
    channels = both.shape[1] // 2

    renamed["conv_in.weight"] = both[:, :channels].clone()
    renamed["controlnet_cond_embedding.weight"] = both[:, channels:].clone()
    return renamed


def autoencoder(state: Mapping[str, Tensor]) -> State:
    """An `AutoencoderKL` or `VQModel`; the 1x1 convolutions of its attention become linear layers."""
    # Published decoder levels are numbered from the full resolution, diffusers' from the smallest.
    top = max((int(key.split(".")[2]) for key in state if key.startswith("decoder.up.")), default=0)

    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up_blocks.{top - int(found[1])}.", key)
        key = substituted_inside(substituted(key, AUTOENCODER), r".*\.attentions\.0\.", ATTENTION)
        is_convolution = ".attentions.0." in key and value.dim() == 4
        renamed[key] = value.flatten(1) if is_convolution else value
    return renamed


def text_encoder(state: Mapping[str, Tensor], layers: int) -> State:
    """OpenCLIP's text tower as a `CLIPTextModel`.

    Args:
        state: Of the tower.
        layers: Of the `CLIPTextModel`. Stable Diffusion 2.1 reads the output of the last layer but one, so its model
            has one less than the tower; further layers, the projection and the temperature are left out.
    """
    renamed: State = {}
    for key, value in state.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.", key)
        if (layer and int(layer[1]) >= layers) or key in ("text_projection", "logit_scale", "attn_mask"):
            continue

        key = substituted(key, TEXT)
        joint = re.match(r"(.*)\.attn\.in_proj_(weight|bias)", key)
        if joint is None:
            renamed[key] = value
        else:  # query, key and value in one tensor
            names = [f"{joint[1]}.self_attn.{name}_proj.{joint[2]}" for name in "qkv"]
            renamed |= dict(zip(names, value.chunk(3), strict=True))
    return renamed
