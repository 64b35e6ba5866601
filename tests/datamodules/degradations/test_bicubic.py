"""Exact resizing, against MATLAB's own files, the reference's numbers, Pillow and torch."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from datamodules.degradations.area import Area, Nearest
from datamodules.degradations.bicubic import Bicubic, PillowBicubic, matlab_bicubic, pillow_bicubic
from datamodules.degradations.degradation import Degradation
from datamodules.degradations.enlarge import Enlargement, enlarge
from datamodules.degradations.levels import from_uint8, to_uint8
from tests.parity.data_pipelines import srdiff
from tests.parity.harness import load

GOLDEN = Path(__file__).parents[2] / "goldens/srdiff/srdiff_data_x8.safetensors"
DATA = os.environ.get("DIFFSR_TEST_DATA")


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]


def degrade(degradation: Degradation, hr: Tensor) -> Tensor:
    return degradation(hr, keys=[str(i) for i in range(len(hr))], epoch=0, seed=0)


@pytest.mark.skipif(DATA is None, reason="DIFFSR_TEST_DATA is not set")
def test_bicubic_reproduces_files_made_by_matlab() -> None:
    files = sorted(Path(DATA or "", "bicubic_x4/gt").iterdir())
    assert len(files) == 16
    for file in files:
        made = to_uint8(degrade(Bicubic(4), from_uint8(read(file)))).int()
        difference = (made - read(file.parents[1] / "lq_matlab" / file.name).int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3


def test_rounding_each_pass_and_enlarging_equal_the_reference() -> None:
    comparisons = list(srdiff(load(GOLDEN)))
    assert {comparison.what for comparison in comparisons} >= {"lr_uint8", "lr_up_float64"}
    assert [comparison.what for comparison in comparisons if not comparison.passed] == []


@pytest.mark.parametrize(
    ("before", "after"),
    [((160, 160), (16, 16)), ((64, 96), (16, 24)), ((40, 56), (80, 112)), ((33, 50), (33, 21)), ((48, 64), (37, 41))],
)
def test_pillow_bicubic_equals_pillow(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = noise(*before, 3)
    expected = np.array(Image.fromarray(image.numpy()).resize(after[::-1], Image.Resampling.BICUBIC))
    assert torch.equal(pillow_bicubic(image.permute(2, 0, 1), size=after).permute(1, 2, 0), torch.from_numpy(expected))


def test_pillow_bicubic_as_a_degradation() -> None:
    hr = noise(2, 3, 128, 128)
    assert torch.equal(to_uint8(degrade(PillowBicubic(8), from_uint8(hr))), pillow_bicubic(hr, size=(16, 16)))


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 0.4, 2, 3])
def test_matlab_bicubic_keeps_constants_and_mirrors(scale: float) -> None:
    image = noise(1, 3, 22, 35).double()
    flat = matlab_bicubic(torch.full_like(image, 77.0), scale=scale)
    torch.testing.assert_close(flat, torch.full_like(flat, 77.0))
    if 22 * scale % 1 == 35 * scale % 1 == 0:  # otherwise the sampling grid is not centred, as in MATLAB
        mirrored = matlab_bicubic(image.flip(-1, -2), scale=scale).flip(-1, -2)
        torch.testing.assert_close(mirrored, matlab_bicubic(image, scale=scale))


def test_matlab_bicubic_rounds_sizes_up_and_takes_sizes() -> None:
    image = noise(3, 22, 36).double()
    assert matlab_bicubic(image, scale=1 / 4).shape == (3, 6, 9)
    torch.testing.assert_close(matlab_bicubic(image, size=(11, 18)), matlab_bicubic(image, scale=0.5))


def test_matlab_bicubic_inside_equals_torch_antialiased() -> None:
    image = noise(1, 3, 64, 64).double()
    expected = functional.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True)
    made = matlab_bicubic(image, scale=0.25)
    torch.testing.assert_close(made[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "size": (4, 4)}])
def test_matlab_bicubic_wants_one_of_scale_and_size(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="either scale or size"):
        matlab_bicubic(noise(3, 8, 8), **options)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        matlab_bicubic(torch.zeros(3, 8, 8, dtype=torch.float16), scale=0.5)
    with pytest.raises(ValueError, match="uint8"):
        pillow_bicubic(torch.zeros(3, 8, 8), size=(4, 4))
    with pytest.raises(ValueError, match="rounding"):
        Bicubic(4, rounding="never")  # type: ignore[arg-type]


def test_area_and_nearest() -> None:
    hr = from_uint8(noise(2, 3, 12, 8))
    torch.testing.assert_close(degrade(Area(4), hr), functional.interpolate(hr, scale_factor=1 / 4, mode="area"))
    assert torch.equal(degrade(Nearest(4), hr), functional.interpolate(hr, scale_factor=1 / 4, mode="nearest"))


def test_enlarge_knows_each_kernel() -> None:
    lr8 = noise(2, 3, 9, 7)
    lr = from_uint8(lr8)
    expected: dict[Enlargement, Tensor] = {
        "matlab": matlab_bicubic(lr8.double(), scale=3) / 255,
        "matlab_256": matlab_bicubic(lr8.double(), scale=3) / 256,
        "pillow": from_uint8(pillow_bicubic(lr8, size=(27, 21))),
        "torch": functional.interpolate(lr, scale_factor=3, mode="bicubic"),
        "bilinear": functional.interpolate(lr, scale_factor=3, mode="bilinear"),
        "nearest": lr.repeat_interleave(3, -1).repeat_interleave(3, -2),
    }
    for kernel, image in expected.items():
        torch.testing.assert_close(enlarge(lr, scale=3, kernel=kernel), image.float(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="lanczos"):
        enlarge(lr, scale=3, kernel="lanczos")  # type: ignore[arg-type]
