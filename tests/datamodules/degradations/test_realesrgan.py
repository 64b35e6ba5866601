"""Real-ESRGAN's pipeline: recipes, their independence of the batch, and the statistics of what they make."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from datamodules.degradations.blur import unsharp_mask
from datamodules.degradations.blur_noise_jpeg import BlurNoiseJPEG
from datamodules.degradations.degradation import Degradation
from datamodules.degradations.image_batch import ImageBatch
from datamodules.degradations.operations import run_programs
from datamodules.degradations.realesrgan import RealESRGAN
from datamodules.prepare.preview import PRESETS
from lightning_modules.cli import degradation as build_degradation

DATA = os.environ.get("DIFFSR_TEST_DATA")
KEYS = [f"set/{i:04d}" for i in range(8)]


def photographs(count: int = 8, size: int = 128) -> Tensor:
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    return torch.stack([photo[:, 20 * i : 20 * i + size, 30 * i : 30 * i + size] for i in range(count)])


def names(operations: list[dict[str, Any]]) -> list[str]:
    return ["noise" if "noise" in one["name"] else one["name"] for one in operations]


@pytest.mark.parametrize("degradation", [RealESRGAN(), RealESRGAN(shuffle=True), BlurNoiseJPEG()])
def test_a_batch_equals_its_members(degradation: Degradation) -> None:
    hr = photographs(8, 256)
    together = degradation(hr, keys=KEYS, epoch=3, seed=1)
    assert together.shape == (8, 3, 64, 64)
    torch.testing.assert_close(together, (together * 255).round() / 255)
    for i in (0, 3, 7):
        alone = degradation(hr[i : i + 1], keys=KEYS[i : i + 1], epoch=3, seed=1)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("degradation", [RealESRGAN(), RealESRGAN(second_order_prob=0.5, shuffle=True)])
def test_images_that_stay_together_equal_images_one_by_one(degradation: RealESRGAN) -> None:
    """On a GPU the batch is one tensor of images of different sizes; the same code runs here."""
    hr = photographs(8, 256)
    recipes = [degradation.recipe(key, epoch=0, seed=0) for key in KEYS]
    together = run_programs(ImageBatch.from_tensor(hr), [recipe["operations"] for recipe in recipes], (64, 64))
    difference = (together - degradation.apply(hr, recipes)).abs() * 255
    assert difference.flatten(1).mean(1).max() < 0.2  # a rounding inside JPEG may fall otherwise, now and then
    assert (difference > 1.5).float().mean() < 0.01


def test_a_recipe_is_plain_and_recreates_its_image() -> None:
    degradation, hr = RealESRGAN(), photographs()
    lr = degradation(hr, keys=KEYS, epoch=5, seed=9)
    kept = json.loads(json.dumps([degradation.recipe(key, epoch=5, seed=9) for key in KEYS]))
    assert torch.equal(degradation.apply(hr, kept), lr)


def test_a_run_that_allows_coarse_products_changes_nothing() -> None:
    hr, before = photographs(2), torch.get_float32_matmul_precision()
    expected = RealESRGAN()(hr, keys=KEYS[:2], epoch=0, seed=0)
    threads = torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(RealESRGAN()(hr, keys=KEYS[:2], epoch=0, seed=0), expected)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_num_threads() == threads
    finally:
        torch.set_float32_matmul_precision(before)


def test_recipes_depend_on_key_epoch_and_seed() -> None:
    recipe = RealESRGAN().recipe
    different = [recipe("a", epoch=0, seed=0), recipe("b", epoch=0, seed=0), recipe("a", epoch=1, seed=0)]
    different.append(recipe("a", epoch=0, seed=1))
    assert all(one != other for i, one in enumerate(different) for other in different[:i])
    assert recipe("a", epoch=0, seed=0) == different[0]


def test_the_order_of_operations() -> None:
    drawn = [RealESRGAN().recipe(f"{i}", epoch=0, seed=0)["operations"] for i in range(2000)]
    first = ["blur", "rescale", "noise", "jpeg"]
    assert all(names(one)[:4] == first for one in drawn)
    blurred = [one for one in drawn if names(one)[4:7] == ["blur", "resize", "noise"]]
    direct = [one for one in drawn if names(one)[4:6] == ["resize", "noise"]]
    assert len(blurred) + len(direct) == len(drawn)
    assert stats.binomtest(len(blurred), len(drawn), 0.8).pvalue > 1e-3
    ends = [names(one)[7 if one in blurred else 6 :] for one in drawn[:500]]
    kinds = [["resize", "blur", "jpeg"], ["resize", "jpeg"], ["jpeg", "resize", "blur"], ["jpeg", "resize"]]
    counts = [ends.count(kind) for kind in kinds]
    assert sum(counts) == 500
    assert stats.chisquare(counts, [200, 50, 200, 50]).pvalue > 1e-3


def test_each_stage_draws_from_its_own_ranges() -> None:
    drawn = [RealESRGAN().recipe(f"{i}", epoch=0, seed=0)["operations"] for i in range(4000)]
    stages = [one[:4] for one in drawn], [one[4:-3] for one in drawn], [one[-3:] for one in drawn]

    def values(stage: int, key: str, **named: str) -> list[float]:
        found = [one for operations in stages[stage] for one in operations if named.items() <= one.items()]
        return [one[key] for one in found if key in one]

    for stage, sigma, (least, most), noise, photons in ((0, 3.0, (0.15, 1.5), 30, 3.0), (1, 1.5, (0.3, 1.2), 25, 2.5)):
        follows_uniform(values(stage, "sigma_x"), 0.2, sigma)
        factors = values(stage, "factor", name="resize" if stage else "rescale")
        follows_uniform([factor for factor in factors if factor < 1], least, 1.0)
        follows_uniform([factor for factor in factors if factor > 1], 1.0, most)
        follows_uniform(values(stage, "sigma", name="gaussian_noise"), 1, noise)
        follows_uniform(values(stage, "factor", name="poisson_noise"), 0.05, photons)
    follows_uniform(values(0, "quality"), 30, 95)
    follows_uniform(values(2, "quality"), 30, 95)
    follows_uniform([one["cutoff"] for ends in stages[2] for one in ends if names([one]) == ["blur"]], np.pi / 3, np.pi)


def follows_uniform(drawn: list[float], low: float, high: float) -> None:
    assert len(drawn) > 300
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_half_of_the_images_skip_the_second_stage() -> None:
    degradation = RealESRGAN(second_order_prob=0.5)
    drawn = [names(degradation.recipe(f"{i}", epoch=0, seed=0)["operations"]) for i in range(2000)]
    assert stats.binomtest(sum(one.count("noise") == 2 for one in drawn), 2000, 0.5).pvalue > 1e-3


def test_shuffled_operations_take_every_order() -> None:
    degradation = RealESRGAN(shuffle=True, second_blur_prob=0.0)
    drawn = [degradation.recipe(f"{i}", epoch=0, seed=0)["operations"] for i in range(3000)]
    orders = [tuple(names(one)[:6]) for one in drawn]
    assert all(sorted(order) == ["blur", "jpeg", "noise", "noise", "rescale", "resize"] for order in orders)
    places = np.array([[order.index("blur"), order.index("jpeg")] for order in orders])
    for column in places.T:
        assert stats.chisquare(np.bincount(column, minlength=6)).pvalue > 1e-3


def test_targets_are_sharpened_only_if_asked() -> None:
    hr = photographs(2)
    torch.testing.assert_close(RealESRGAN(gt_usm=True).target(hr), unsharp_mask(hr))
    assert torch.equal(RealESRGAN(gt_usm=False).target(hr), hr)


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", [2, 4])
def test_presets_degrade(preset: Path, scale: int) -> None:
    degradation, hr = build_degradation([str(preset)], scale), photographs(2, 160)
    assert degradation(hr, keys=KEYS[:2], epoch=0, seed=0).shape == (2, 3, 160 // scale, 160 // scale)


@pytest.mark.parametrize(
    ("size", "options", "named"),
    [
        (64, {}, "KEY: 64x64 is too small for blur_kernel_size2: .* give images of at least 76x76"),
        (24, {"resize_range": (0.9, 1.5)}, "KEY: 24x24 is too small for gt_usm"),
        (16, {"gt_usm": False, "resize_range": (0.9, 1.5)}, "KEY: 16x16 is too small for final_sinc_size"),
        (100, {"shuffle": True}, "KEY: 100x100 is too small for blur_kernel_size"),
        (66, {}, "KEY: 66x66 does not divide by scale 4"),
    ],
)
def test_images_too_small_for_the_kernels_are_refused(size: int, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RealESRGAN(**options)(torch.rand(1, 3, size, size), keys=["KEY"], epoch=0, seed=0)


def test_the_size_it_asks_for_is_enough() -> None:
    hr = torch.rand(1, 3, 76, 76)
    for i in range(40):
        RealESRGAN()(hr, keys=[f"{i}"], epoch=0, seed=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("noise_range2", (9, 1)), ("final_sinc_prob", 2), ("final_sinc_size", 8), ("second_order_prob", -1), ("scale", 0)],
)
def test_impossible_values_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        RealESRGAN(**{key: value})


def test_unknown_operations_are_named() -> None:
    with pytest.raises(KeyError, match="deblur"):
        RealESRGAN().apply(photographs(1), [{"operations": [{"name": "deblur"}]}])
    with pytest.raises(ValueError, match="instead of"):
        RealESRGAN().apply(photographs(1), [{"operations": []}])


def statistics_of(lr: Tensor) -> dict[str, np.ndarray]:
    """Noise level, high-frequency energy and blockiness of images `[B,3,64,64]`."""
    luma = (lr * lr.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1) * 255
    diagonal = (luma[:, ::2, ::2] - luma[:, 1::2, ::2] - luma[:, ::2, 1::2] + luma[:, 1::2, 1::2]) / 2
    energy = torch.fft.fft2(luma - luma.mean((1, 2), keepdim=True)).abs() ** 2
    frequency = torch.fft.fftfreq(64).abs()
    high = torch.maximum(frequency[:, None], frequency) > 0.25
    steps = luma.diff(dim=2).abs().mean(1) + luma.diff(dim=1).abs().mean(2)
    edges = torch.arange(63) % 8 == 7
    return {
        "noise level": (diagonal.abs().flatten(1).median(1).values / 0.6745).numpy(),
        "high-frequency energy": ((energy * high).sum((1, 2)) / energy.sum((1, 2))).numpy(),
        "blockiness": (steps[:, edges].mean(1) / (steps[:, ~edges].mean(1) + 1e-6)).numpy(),
    }


@pytest.fixture(scope="module")
def fixed_pairs() -> tuple[Tensor, Tensor]:
    if DATA is None:
        pytest.skip("DIFFSR_TEST_DATA is not set")
    folder = Path(DATA, "realesrgan_x4")
    stems = sorted(path.name for path in (folder / "gt").iterdir())

    def read(part: str) -> Tensor:
        files = [np.array(Image.open(folder / part / name).convert("RGB")) for name in stems]
        return torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2).float() / 255

    return read("gt"), read("lq")


def degraded(preset: str, gt: Tensor, epochs: int) -> dict[str, np.ndarray]:
    degradation, keys = build_degradation([str(PRESETS / f"{preset}.yaml")]), [f"pair/{i}" for i in range(len(gt))]
    return statistics_of(torch.cat([degradation(gt, keys=keys, epoch=e, seed=0) for e in range(epochs)]))


@pytest.mark.parametrize("preset", ["realesrgan", "resshift"])
def test_statistics_span_those_of_the_fixed_pairs(fixed_pairs: tuple[Tensor, Tensor], preset: str) -> None:
    ours = degraded(preset, fixed_pairs[0], epochs=12)
    for name, fixed in statistics_of(fixed_pairs[1]).items():
        inside = (fixed >= ours[name].min()) & (fixed <= ours[name].max())
        assert inside.mean() >= 0.95, name


def test_the_test_preset_is_the_law_of_the_fixed_pairs(fixed_pairs: tuple[Tensor, Tensor]) -> None:
    ours = degraded("resshift_test", fixed_pairs[0], epochs=6)
    for name, fixed in statistics_of(fixed_pairs[1]).items():
        assert stats.ks_2samp(fixed, ours[name]).pvalue > 0.01, name


def test_each_stage_has_its_own_compression() -> None:
    degradation = RealESRGAN(jpeg_range=(30.0, 40.0), jpeg_range2=(80.0, 90.0))
    for i in range(50):
        operations = degradation.recipe(f"{i}", epoch=0, seed=0)["operations"]
        first, last = (one["quality"] for one in operations if one["name"] == "jpeg")
        assert 30 <= first <= 40 and 80 <= last <= 90


def test_the_classical_degradation_in_its_order() -> None:
    degradation = BlurNoiseJPEG(aniso_prob=0.2)
    drawn = [degradation.recipe(f"{i}", epoch=0, seed=0)["operations"] for i in range(1000)]
    assert all(names(one) == ["blur", "resize", "noise", "jpeg"] for one in drawn)
    assert all(one[1] == {"name": "resize", "factor": 1.0, "mode": "area"} for one in drawn)
    elongated = sum(one[0]["kernel"] == "aniso" for one in drawn)
    assert stats.binomtest(elongated, len(drawn), 0.2).pvalue > 1e-3
