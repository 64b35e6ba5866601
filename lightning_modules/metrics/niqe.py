"""NIQE: how far an image's statistics are from those of natural photographs. No reference image is needed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from lightning_modules.float64 import in_float64
from lightning_modules.metrics.pixels import crop_border, luma
from lightning_modules.metrics.score import NoReferenceScore
from lightning_modules.weight_files import WeightFile, WeightsError, obtain

FILE = WeightFile(
    name="niqe_pris_params.npz",
    url="https://raw.githubusercontent.com/XPixelGroup/BasicSR/master/basicsr/metrics/niqe_pris_params.npz",
    sha256="2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
)

FEATURES = 36  # 18 at each of two scales
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours whose products are modelled
MIRRORED = 8  # pixels, even and more than the antialiased kernel reaches
SHARP = 0.75  # share of the sharpest block's sharpness that a block of a pristine image needs


class NaturalModel(NamedTuple):
    """The multivariate Gaussian of natural photographs' features."""

    mean: Tensor  # [36] float64
    covariance: Tensor  # [36,36] float64


class NIQE(NoReferenceScore):
    """Natural image quality evaluator (Mittal, Soundararajan, Bovik 2013), lower is better.

    Follows the authors' MATLAB release as BasicSR ports it: Y in 0..255 rounded to whole levels, no border, blocks
    without overlap at two scales. An image of which fewer than two blocks have any texture scores NaN.

    Args:
        weights: The model of natural photographs: a published `niqe_pris_params.npz` (BasicSR) or `modelparameters.mat`
            (the authors' release), or what `python benchmarks/niqe_model.py PHOTOS MODEL.npz` makes of a folder of
            sharp photographs. By default BasicSR's, found or downloaded, see `weights.obtain`. Scores of different
            models cannot be compared.
        block: Side of a block. 96 is the authors'; images below 192 pixels have too few of those, for 128 take 32.
        optional: See `Loadable`.

    Raises:
        ValueError: `block` is odd or too small.
    """

    higher_is_better = False
    mean: Tensor
    covariance: Tensor

    def __init__(self, weights: str | None = None, block: int = 96, *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        if block < 16 or block % 2:
            raise ValueError(f"block must be even and at least 16, got {block}")
        self.weights, self.block = weights, block
        self.name = "niqe" if block == 96 else f"niqe_block{block}"
        self.smallest = 2 * block  # a covariance needs 2x2 blocks
        self.definition = f"NIQE on rounded Y of BT.601 in studio range, blocks of {block} pixels, whole image"
        # No buffers: the numbers come from a file of their own, and not every device takes float64.
        self.mean = torch.zeros(FEATURES, dtype=torch.float64)
        self.covariance = torch.eye(FEATURES, dtype=torch.float64)

    def load(self) -> None:
        """See `Loadable.load`."""
        if self.files:
            return
        path = obtain(FILE, self.weights, needed_by="NIQE")
        self.mean, self.covariance = read_model(path)
        self.record(path)

    @torch.no_grad()
    def judge(self, image: Tensor) -> Tensor:
        """`[B]` float64 for `[B,3,H,W]` in [0, 1].

        Raises:
            ValueError: an image has fewer than 2x2 blocks.
        """
        height, width = image.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"NIQE needs 2x2 blocks of {self.block} pixels, got an image of {width}x{height}; set block to at most "
                f"{min(height, width) // 4 * 2}, and state it with the score"
            )
        luminance = luminance_of(image)
        return torch.stack([self._distance(features(plane[None], self.block)[0]) for plane in luminance])

    def _distance(self, of_blocks: Tensor) -> Tensor:
        """Eq. 10 of the paper, between the model and the Gaussian of `[N,36]`."""
        whole = of_blocks[~of_blocks.isnan().any(dim=1)]
        if len(whole) < 2:
            return of_blocks.new_tensor(float("nan"))
        difference = self.mean.to(of_blocks) - of_blocks.nanmean(dim=0)
        inverse: Tensor = torch.linalg.pinv((self.covariance.to(of_blocks) + whole.T.cov()) / 2)
        return (difference @ inverse @ difference).sqrt()


def luminance_of(image: Tensor) -> Tensor:
    """Y in 0..255, rounded to whole levels as MATLAB's images are: `[B,1,H,W]` float64 of `[B,3,H,W]` in [0, 1]."""
    return (255 * luma(in_float64(image))).round()


def features(luminance: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Features and sharpness of the blocks of one image.

    Args:
        luminance: `[1,1,H,W]` float64, of `luminance_of`; what fills no block at the right and below is left out.
        block: Side of a block.

    Returns:
        `[N,36]`, and `[N]`: the mean local deviation of each block at full size.
    """
    height, width = (size // block * block for size in luminance.shape[-2:])
    image = luminance[..., :height, :width]
    normalised, deviation = _normalise(image)
    half = 255 * _halve(image / 255)
    fine, coarse = _blocks(normalised, block), _blocks(_normalise(half)[0], block // 2)
    both = torch.cat([_block_features(fine), _block_features(coarse)], dim=1)
    return both, _blocks(deviation, block).mean(dim=(1, 2))


def _normalise(image: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1: each pixel less its local mean, over its local deviation plus 1; and that deviation.

    Local means are rounded to float32, as the reference's are: a flat area is then exactly 0, and the fit counts it as
    neither negative nor positive. Without it the last bit of each sum would decide.
    """
    offsets = torch.arange(7, dtype=torch.float64, device=image.device) - 3
    weights = torch.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    weights = weights / weights.sum()

    def smooth(values: Tensor) -> Tensor:
        values = pad(values.double(), (3, 3, 3, 3), mode="replicate")
        return conv2d(conv2d(values, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).float()

    image = image.float()
    mean = smooth(image)
    deviation = (smooth(image**2) - mean**2).abs().sqrt()
    return ((image - mean) / (deviation + 1)).double(), deviation.double()


def _halve(image: Tensor) -> Tensor:
    """Half the size as MATLAB's `imresize` makes it: antialiased bicubic, the image mirrored at its borders."""
    mirrored = image
    for direction in (-2, -1):
        length = image.shape[direction]
        before = mirrored.narrow(direction, 0, MIRRORED).flip(direction)
        after = mirrored.narrow(direction, length - MIRRORED, MIRRORED).flip(direction)
        mirrored = torch.cat([before, mirrored, after], dim=direction)
    return crop_border(interpolate(mirrored, scale_factor=0.5, mode="bicubic", antialias=True), MIRRORED // 2)


def _blocks(image: Tensor, block: int) -> Tensor:
    """`[1,1,H,W]` to `[N,block,block]`."""
    return image[0, 0].unfold(0, block, block).unfold(1, block, block).flatten(0, 1)


def _block_features(blocks: Tensor) -> Tensor:
    """`[N,18]`: shape and scale of the normalised pixels, and four numbers for each kind of neighbours' products."""
    shape, left, right = asymmetric_fit(blocks.flatten(1))
    found = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = asymmetric_fit((blocks * blocks.roll(shift, dims=(1, 2))).flatten(1))
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        found += [shape, mean, left, right]
    return torch.stack(found, dim=1)


def asymmetric_fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fits an asymmetric generalised Gaussian to each row by matching moments (Lasmar et al. 2009).

    Args:
        values: `[N,M]`.

    Returns:
        Its shape in [0.2, 10], and its left and right scale, each `[N]`; NaN where a row has no values of one sign.
    """
    shapes = torch.arange(200, 10001, dtype=values.dtype, device=values.device) / 1000
    ratio_of_shape = torch.exp(2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes))
    left, right = _root_mean_square(values, values < 0), _root_mean_square(values, values > 0)
    skew = left / right
    ratio = values.abs().mean(dim=1) ** 2 / (values**2).mean(dim=1)
    ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = shapes[(ratio_of_shape - ratio[:, None]).abs().argmin(dim=1)]
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale


def _root_mean_square(values: Tensor, chosen: Tensor) -> Tensor:
    return ((values**2 * chosen).sum(dim=1) / chosen.sum(dim=1)).sqrt()


def fit_model(images: Iterable[Tensor], block: int = 96) -> NaturalModel:
    """The model of natural photographs, from the sharp blocks of sharp photographs.

    Args:
        images: `[3,H,W]` in [0, 1], each at least one block large.
        block: Side of a block.

    Raises:
        ValueError: there are too few sharp blocks for a covariance of 36 numbers.
    """
    found = [_sharp_features(image, block) for image in images]
    rows = torch.cat(found) if found else torch.empty(0, FEATURES, dtype=torch.float64)
    rows = rows[~rows.isnan().any(dim=1)]
    if len(rows) <= FEATURES:
        raise ValueError(f"only {len(rows)} sharp blocks of {block} pixels; more than {FEATURES} are needed")
    return NaturalModel(mean=rows.mean(dim=0), covariance=rows.T.cov())


def _sharp_features(image: Tensor, block: int) -> Tensor:
    if min(image.shape[-2:]) < block:
        raise ValueError(f"an image of {image.shape[-1]}x{image.shape[-2]} holds no block of {block} pixels")
    of_blocks, sharpness = features(luminance_of(image[None]), block)
    return of_blocks[sharpness > SHARP * sharpness.max()]


def read_model(path: Path) -> NaturalModel:
    """Reads a model of natural photographs, `.npz` or MATLAB's `.mat`, executing nothing of it.

    Raises:
        WeightsError: the file holds no such model.
    """
    try:
        arrays = _read_mat(path) if path.suffix == ".mat" else dict(np.load(path, allow_pickle=False))
        found = {name.replace("_pris_param", "_prisparam"): value for name, value in arrays.items()}
        mean = torch.from_numpy(np.asarray(found["mu_prisparam"], dtype=np.float64)).reshape(FEATURES)
        covariance = torch.from_numpy(np.asarray(found["cov_prisparam"], dtype=np.float64)).reshape(FEATURES, FEATURES)
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        raise WeightsError(f"{path}: holds no mean and covariance of NIQE's {FEATURES} features ({error})") from error
    return NaturalModel(mean=mean, covariance=covariance)


def _read_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    return dict(loadmat(path))
