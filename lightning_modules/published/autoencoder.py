"""ResShift's published autoencoder, VQ-f4, as a folder that diffusers loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_modules.checkpoint import CheckpointError, first_mismatches, published_state
from lightning_modules.published import ldm_names

VQ_F4: dict[str, Any] = {
    "block_out_channels": (128, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "vq_embed_dim": 3,
    "num_vq_embeddings": 8192,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 1.0,
}


def convert(path: str | Path, folder: str | Path, architecture: Mapping[str, Any] = VQ_F4) -> None:
    """Writes the autoencoder in `path` as `config.json` and `diffusion_pytorch_model.safetensors`.

    Args:
        path: `autoencoder_vq_f4.pth` of ResShift's releases.
        folder: Where to write; what `VQAutoencoder` takes as `weights`.
        architecture: Arguments of diffusers' `VQModel`.

    Raises:
        CheckpointError: the file is unusable, or not of this architecture.
    """
    from diffusers import VQModel  # takes seconds to import

    model = VQModel(**architecture)
    try:
        model.load_state_dict(ldm_names.autoencoder(published_state(path)))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: is no VQ-f4 autoencoder: {first_mismatches(error)}") from error
    model.save_pretrained(folder)
