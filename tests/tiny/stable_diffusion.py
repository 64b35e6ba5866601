"""Random models of Stable Diffusion's and ResShift's classes, of a few thousand parameters, in the hub's layout."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lightning_modules.networks.rrdb import RRDBNet

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
    "attention_head_dim": (1, 2, 2, 2),  # diffusers: the number of heads
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (4, 4, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "sample_size": 64,
}
VQ: dict[str, Any] = {
    "block_out_channels": (4, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "vq_embed_dim": 3,
    "num_vq_embeddings": 32,
    "norm_num_groups": 2,
}
TEXT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write_stable_diffusion(folder: Path) -> None:
    """`unet`, `vae`, `text_encoder` and `tokenizer` of a Stable Diffusion 2.1."""
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    tokens = write_tokenizer(folder / "tokenizer")
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": 0}
    config = CLIPTextConfig(**TEXT, **ends, vocab_size=tokens, max_position_embeddings=12, hidden_act="gelu")
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def write_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer that knows single bytes, padding with its first token as Stable Diffusion 2.1's does."""
    folder.mkdir(parents=True)
    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *SPECIAL]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "unk_token": SPECIAL[1], "pad_token": vocabulary[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    return len(vocabulary)


def write_latent_models(folder: Path) -> None:
    """Everything that the latent experiments load."""
    write_stable_diffusion(folder / "sd21")
    VQModel(**VQ).save_pretrained(folder / "vq_f4")
    torch.save({"params_ema": RRDBNet(4, nf=4, nb=1, gc=2).state_dict()}, folder / "realesrnet.pth")
