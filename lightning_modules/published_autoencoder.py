"""`python -m lightning_modules.published_autoencoder FILE --out FOLDER`: ResShift's VQ-f4 as a folder for diffusers."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import VQModel

from lightning_modules.checkpoint import CheckpointError, misfit, published_state
from lightning_modules.networks.ldm_names import autoencoder

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
    """Writes the public autoencoder in `path` as `config.json` and `diffusion_pytorch_model.safetensors`.

    Raises:
        CheckpointError: the file is unusable, or not of this architecture.
    """
    model = VQModel(**architecture)
    try:
        model.load_state_dict(autoencoder(published_state(path)))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: is no VQ-f4 autoencoder: {misfit(error)}") from error
    model.save_pretrained(folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Converts ResShift's published autoencoder for diffusers.")
    parser.add_argument("file", help="autoencoder_vq_f4.pth")
    parser.add_argument("--out", required=True, help="folder to write; space.init_args.autoencoder.init_args.weights")
    arguments = parser.parse_args()
    try:
        convert(arguments.file, arguments.out)
    except CheckpointError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{arguments.out}: config.json and diffusion_pytorch_model.safetensors")


if __name__ == "__main__":
    main()
