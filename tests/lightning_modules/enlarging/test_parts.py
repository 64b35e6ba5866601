"""Images in parts: what the whole would be, where the memory ends, and how much of it is used."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.batch import Batch
from datamodules.photograph import rescaled
from lightning_modules.diffusion.randomness import KeyedNoise, NoiseOfParts
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.enlarging.parts import Cuts, PartByPart
from lightning_modules.super_resolver import SuperResolver, UnusableImage
from tests.datamodules.trees import picture
from tests.lightning_modules.enlarging.copying import Copying
from tests.lightning_modules.test_base import srdiff


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.asarray(picture(seed, height, width))


@pytest.mark.parametrize("unit", [1, 2, 8])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 250, 1000, 3001])
def test_cuts_cover_all_with_weights_that_sum_to_one(length: int, unit: int) -> None:
    cuts = Cuts.of(length, 128, 16, unit)
    assert cuts.starts[0] == 0 and cuts.stops[-1] == length
    assert all(start % unit == 0 for start in cuts.starts)
    assert all(stop - start <= 128 for start, stop in zip(cuts.starts, cuts.stops, strict=True))
    total = torch.zeros(2 * length)
    for index, (start, stop) in enumerate(zip(cuts.starts, cuts.stops, strict=True)):
        weights = cuts.weights(index, 2)
        assert len(weights) == 2 * (stop - start) and weights.min() > 0
        total[2 * start : 2 * stop] += weights
    torch.testing.assert_close(total, torch.ones(2 * length))


@pytest.mark.parametrize("size", [(300, 420), (97, 511), (65, 40)])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_method_that_copies_copies_all_of_a_large_image(size: tuple[int, int], bits: int) -> None:
    image = rescaled(pixels(*size), np.uint16) if bits == 16 else pixels(*size)
    parts = PartByPart(Copying(), scale=2, kernel="nearest", part=128)
    assert len(parts.cuts(*size)[0]) * len(parts.cuts(*size)[1]) > 1
    (made,) = parts([image], ["a"])
    assert made.dtype == image.dtype
    assert np.array_equal(made, image.repeat(2, axis=0).repeat(2, axis=1))


class Noise(SuperResolver):
    """Draws the noise of each place of the image, on a grid of half of its pixels."""

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        like = batch["up"][..., ::2, ::2]
        randn = NoiseOfParts(batch["key"], "sampler", batch["place"], batch["up"].shape[-2])
        randn(like)
        return (randn.fork()(like) / 4).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)

    def protocol(self) -> str:
        return "noise"

    @property
    def stride(self) -> int:
        return 4


def test_parts_share_the_noise_of_the_whole_image() -> None:
    image = pixels(150, 131)
    coarse, fine = (PartByPart(Noise(), scale=2, kernel="nearest", part=part) for part in (256, 128))
    one, other = coarse([image], ["a"])[0], fine([image], ["a"])[0]
    assert np.abs(one.astype(int) - other).max() <= 1, "where parts overlap, the noise must be one"
    assert one.std() > 20 and np.abs(fine([image], ["b"])[0].astype(int) - other).mean() > 20
    place = [(64, 32)]
    whole = NoiseOfParts(["a"], "x", [(0, 0)], 256)(torch.zeros(1, 2, 128, 128))
    part = NoiseOfParts(["a"], "x", place, 128)(torch.zeros(1, 2, 64, 64))
    assert torch.equal(part, whole[..., 32:96, 16:80])
    assert abs(float(whole.std()) - 1) < 0.02 and abs(float(whole.mean())) < 0.02


def test_a_small_image_is_what_the_method_makes_of_it_alone_or_among_others() -> None:
    method, images = srdiff().eval(), [pixels(20, 24, seed) for seed in range(3)]
    parts = PartByPart(method, scale=4, kernel="matlab")
    assert parts.fits(20, 24) >= 3 and parts.fits(20, 400) == 0
    together = parts(images, ["a", "b", "c"])
    for image, key, made in zip(images, "abc", together, strict=True):
        alone = parts([image], [key])[0]
        assert np.abs(alone.astype(int) - made).max() <= 1


def test_progress_adds_up_to_the_work_and_moves_inside_of_a_part() -> None:
    told: list[float] = []
    parts = PartByPart(srdiff().eval(), scale=4, kernel="matlab", part=128)
    parts.together = 1
    parts([pixels(60, 50)], ["a"], advance=told.append)
    assert sum(told) == pytest.approx(parts.work(60, 50)) and min(told) >= 0
    count = len(parts.cuts(60, 50)[0]) * len(parts.cuts(60, 50)[1])
    assert len(told) > 2 * count


@pytest.fixture
def short() -> Iterator[tuple[Any, list[int]]]:
    """A method whose network fails for more than 100 x 100 pixels, and what it was given."""
    method, given = srdiff().eval(), []

    def look(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        given.append(arguments[0].shape[0] * arguments[0].shape[-2] * arguments[0].shape[-1])
        if given[-1] > 100 * 100:
            raise torch.OutOfMemoryError("out of memory")

    method.network.register_forward_pre_hook(look)
    yield method, given


def test_what_does_not_fit_the_memory_is_cut_into_smaller_parts(
    short: tuple[Any, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    method, given = short
    image = pixels(70, 50)
    parts = PartByPart(method, scale=4, kernel="matlab", part=256)
    (made,) = parts([image], ["a"])
    assert made.shape == (280, 200, 3)
    assert caplog.text.count("do not fit the memory; they are halved") == 1
    assert parts.side <= 25, "later images begin with parts that fit"
    given.clear()
    (again,) = parts([image], ["a"])
    assert max(given) <= 100 * 100
    reference = PartByPart(srdiff().eval(), scale=4, kernel="matlab", part=256)([image], ["a"])[0]
    assert np.abs(made.astype(int) - reference).mean() < 0.2 * reference.std()
    assert np.abs(again.astype(int) - made).mean() < 0.2 * made.std()


def test_several_that_do_not_fit_together_are_computed_one_by_one(
    short: tuple[Any, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    method, _ = short
    images = [pixels(20, 24, seed) for seed in range(3)]
    made = PartByPart(method, scale=4, kernel="matlab")(images, ["a", "b", "c"])
    assert "3 images or parts at once do not fit the memory" in caplog.text
    for image, key, each in zip(images, "abc", made, strict=True):
        alone = PartByPart(srdiff().eval(), scale=4, kernel="matlab")([image], [key])[0]
        assert np.abs(alone.astype(int) - each).max() <= 1


def test_what_fits_in_no_parts_is_refused_and_other_errors_are_raised() -> None:
    method = srdiff().eval()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    hook = method.network.register_forward_pre_hook(fail)
    with pytest.raises(UnusableImage, match="a: does not fit the memory, in parts of"):
        PartByPart(method, scale=4, kernel="matlab")([pixels(50, 50)], ["a"])
    hook.remove()
    method.network.forward = lambda *_, **__: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        PartByPart(method, scale=4, kernel="matlab")([pixels(50, 50)], ["a"])


def test_parts_below_what_the_network_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="tile 2: must be at least"):
        PartByPart(srdiff().eval(), scale=4, kernel="matlab", part=2)


def test_noise_is_that_of_the_image_alone_where_nothing_is_cut() -> None:
    method = srdiff().eval()
    seen: list[type] = []
    noise = method._noise
    method._noise = lambda batch, purpose: seen.append(type(noise(batch, purpose))) or noise(batch, purpose)  # type: ignore[func-returns-value,method-assign]
    PartByPart(method, scale=4, kernel="matlab")([pixels(20, 20)], ["a"])
    assert set(seen) == {KeyedNoise}
    PartByPart(method, scale=4, kernel="matlab", part=64)([pixels(20, 20)], ["a"])
    assert set(seen) == {KeyedNoise, NoiseOfParts}


def test_memory_is_bounded_by_the_result_and_not_by_floats(tmp_path: Path) -> None:
    """The result of a large image is 12 bytes a pixel as floats; in a process of its own, 9 must do."""
    import subprocess
    import sys

    code = """
import resource, sys, numpy as np
from lightning_modules.enlarging.parts import PartByPart
from tests.lightning_modules.enlarging.copying import Copying
parts = PartByPart(Copying(), scale=4, kernel="nearest")
image = np.zeros((1500, 2000, 3), np.uint8)
parts([image[:300, :300]], ["warm"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parts([image], ["a"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (6000 * 8000))
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert float(done.stdout) < 9
