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

_SIDE = 32  # pixels, of the thumbnail that is hashed
_TOLERANCE = 4  # bits of 64 in which the hashes of two copies may differ; different photographs differ in 12 or more
_BAND_BITS = 13  # one of five such bands is equal where at most four bits differ
_FLAT = 2.0  # grey levels: an image with a smaller standard deviation has no usable hash


def perceptual_hash(image: Pixels) -> int | None:
    """64 bits that survive scaling and compression: signs of low DCT frequencies; None for a flat image."""
    thumbnail = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(thumbnail, dtype=np.float64)
    if values.std() < _FLAT:
        return None
    low = dctn(values, norm="ortho")[:8, :8].ravel()
    return int("".join("1" if value > np.median(low[1:]) else "0" for value in low), 2)


def near_duplicates(hashes: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Positions of each two of `hashes` that differ in at most four bits.

    Only hashes that share one of five bands of bits are compared, so that time does not grow with the square of their
    number.
    """
    seen: set[tuple[int, int]] = set()
    for band in range(_TOLERANCE + 1):
        buckets: dict[int, list[tuple[int, int]]] = {}
        for position, code in enumerate(hashes):
            if code is not None:
                buckets.setdefault((code >> _BAND_BITS * band) & (1 << _BAND_BITS) - 1, []).append((position, code))

        for (one, code), (other, other_code) in (pair for held in buckets.values() for pair in combinations(held, 2)):
            if (one, other) not in seen and (code ^ other_code).bit_count() <= _TOLERANCE:
                seen.add((one, other))
                yield one, other


def displacement(hr: Pixels, lr: Pixels) -> float:
    """How far `lr` is shifted against `hr` shrunk to its size, in pixels of `lr`."""
    shrunk = matlab_bicubic(torch.from_numpy(_grey(hr))[None, None], size=(lr.shape[0], lr.shape[1]))[0, 0].numpy()
    shift, _, _ = phase_cross_correlation(
        _windowed(shrunk), _windowed(_grey(lr)), upsample_factor=20, normalization=None
    )
    return float(np.hypot(*shift))


def _windowed(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without mean and under a Hann window: the correlation is circular, and borders would act as edges."""
    height, width = grey.shape
    windowed: NDArray[np.float64] = (grey - grey.mean()) * np.hanning(height)[:, None] * np.hanning(width)
    return windowed


def _grey(image: Pixels) -> NDArray[np.float64]:
    grey: NDArray[np.float64] = image.astype(np.float64).mean(axis=2)
    return grey
