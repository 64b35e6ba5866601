"""Photographs that ship with scikit-image, and what noise makes of them."""

import numpy as np
import torch
from skimage.data import astronaut, coffee
from torch import Tensor

HEIGHT, WIDTH = 192, 208


def pair() -> tuple[Tensor, Tensor]:
    """Noisy and clean, `[2,3,192,208]` float64 of 8-bit values in [0, 1]."""
    hr = np.stack([astronaut()[100 : 100 + HEIGHT, 150 : 150 + WIDTH], coffee()[150 : 150 + HEIGHT, 250 : 250 + WIDTH]])
    noise = np.random.default_rng(0).normal(0, 12, hr.shape)
    sr = np.clip(np.round(hr + noise), 0, 255)
    noisy, clean = (torch.from_numpy(image / 255).permute(0, 3, 1, 2) for image in (sr, hr))
    return noisy, clean
