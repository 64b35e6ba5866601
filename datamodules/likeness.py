"""Whether two images show the same: perceptual hashes for copies, sub-pixel displacement for pairs."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from skimage.registration import phase_cross_correlation

from datamodules.degradations.bicubic import matlab_bicubic
from datamodules.images import Pixels

_SIDE = 32
_NEAR = 4  # bits of 64 in which the hashes of two copies may differ; different photographs differ in 12 or more
_BAND = 13  # bits: one of five such bands is equal where at most four bits differ
_FLAT = 2.0  # grey levels: an image with less variation has no usable hash


def perceptual_hash(image: Pixels) -> int | None:
    """64 bits that survive scaling and compression: signs of low DCT frequencies; None for a flat image."""
    small = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64)
    if values.std() < _FLAT:
        return None
    low = dctn(values, norm="ortho")[:8, :8].ravel()
    return int("".join("1" if value > np.median(low[1:]) else "0" for value in low), 2)


def copies(codes: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Pairs of numbers of `codes` that differ in at most four bits."""
    seen: set[tuple[int, int]] = set()
    for band in range(_NEAR + 1):
        buckets: dict[int, list[tuple[int, int]]] = {}
        for number, code in enumerate(codes):
            if code is not None:
                buckets.setdefault((code >> _BAND * band) & (1 << _BAND) - 1, []).append((number, code))
        for (one, code), (other, other_code) in (pair for held in buckets.values() for pair in combinations(held, 2)):
            if (one, other) not in seen and (code ^ other_code).bit_count() <= _NEAR:
                seen.add((one, other))
                yield one, other


def displacement(hr: Pixels, lr: Pixels) -> float:
    """How far `lr` lies from `hr` shrunk to its size, in pixels of `lr`."""
    shrunk = matlab_bicubic(torch.from_numpy(_grey(hr))[None, None], size=(lr.shape[0], lr.shape[1]))[0, 0].numpy()
    moved, _, _ = phase_cross_correlation(_faded(shrunk), _faded(_grey(lr)), upsample_factor=20, normalization=None)
    return float(np.hypot(*moved))


def _faded(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without mean and falling to zero at the borders, which are no part of the motif."""
    height, width = grey.shape
    faded: NDArray[np.float64] = (grey - grey.mean()) * np.hanning(height)[:, None] * np.hanning(width)
    return faded


def _grey(image: Pixels) -> NDArray[np.float64]:
    grey: NDArray[np.float64] = image.astype(np.float64).mean(axis=2)
    return grey
