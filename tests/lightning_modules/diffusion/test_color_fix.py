"""Colour fixes; their values are compared in tests.parity (kind colorfix)."""

import pytest
import torch

from lightning_modules.diffusion.color_fix import ColorFix, adain, fix_color, wavelet

METHODS: list[ColorFix] = ["wavelet", "adain"]


def picture(seed: int, side: int = 40) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_a_tint_is_taken_away(method: ColorFix) -> None:
    image = picture(0) * 1.6 - 0.8
    tinted = image + torch.tensor([0.1, -0.05, 0.02])[:, None, None]
    torch.testing.assert_close(fix_color(tinted, reference=image, method=method), image, rtol=0, atol=1e-5)


def test_none_is_the_image_itself() -> None:
    image = picture(0)
    assert fix_color(image, reference=picture(1), method="none") is image


def test_wavelet_takes_detail_from_the_image_and_colour_from_the_reference() -> None:
    flat = torch.full((1, 3, 64, 64), 0.4)
    checks = flat.clone()
    checks[..., ::2] += 0.1  # of the highest frequency, which the first blur removes
    fixed = wavelet(checks, reference=flat + 0.2)
    inside = slice(8, -8)
    torch.testing.assert_close((fixed - checks)[..., inside].mean(), torch.tensor(0.15), rtol=0, atol=2e-3)
    assert (fixed[..., ::2] - fixed[..., 1::2])[..., inside].mean() == pytest.approx(0.1, abs=1e-3)


def test_adain_moves_mean_and_deviation_of_each_image_and_channel() -> None:
    reference = picture(1) * 0.3 + torch.tensor([0.1, 0.2, 0.5])[:, None, None]
    fixed = adain(picture(0), reference=reference)
    torch.testing.assert_close(fixed.mean((2, 3)), reference.mean((2, 3)))
    torch.testing.assert_close(fixed.std((2, 3)), reference.std((2, 3)), rtol=1e-3, atol=0)
