"""Makes NIQE's model of natural photographs, the `weights` of `lightning_modules.metrics.niqe.NIQE`.

    python benchmarks/niqe_model.py PHOTOS MODEL.npz [--block 96]

PHOTOS is a folder of sharp, undistorted photographs. Scores of different models cannot be compared.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from datamodules.images import ImageError, decode, find_images
from lightning_modules.metrics.niqe import fit_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of sharp, undistorted photographs")
    parser.add_argument("model", type=Path, help="where to write the model, .npz")
    parser.add_argument("--block", type=int, default=96, help="side of a block (default: 96, the authors')")

    arguments = parser.parse_args()
    try:
        files = find_images(arguments.photos)
        photos = (torch.tensor(decode(path, str(path))).permute(2, 0, 1) / 255 for path in files)
        model = fit_model(photos, arguments.block)
    except (ImageError, ValueError, OSError) as error:
        parser.exit(1, f"error: {arguments.photos}: {error}\n")

    np.savez(arguments.model, mu_pris_param=model.mean.numpy()[None], cov_pris_param=model.covariance.numpy())
    print(f"{arguments.model}: from {len(files)} photographs")


if __name__ == "__main__":
    main()
