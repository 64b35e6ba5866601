"""Images of a batch as 8-bit pixels."""

import pytest
import torch

from datamodules.batch import make_batch, to_pixels


def test_every_level_survives_the_way_to_the_network_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(levels.float() / 255 * 2 - 1, ["levels"]), levels)


def test_pixels_are_rounded_and_clamped() -> None:
    image = torch.tensor([-3.0, 10.4, 10.6, 300.0]).reshape(1, 1, 2, 2) / 127.5 - 1
    assert to_pixels(image, ["a"]).flatten().tolist() == [0, 10, 11, 255]


def test_an_image_that_is_not_finite_is_named() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^second: the image holds NaN"):
        to_pixels(images, ["first", "second", "third"])


IMAGE = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (IMAGE * 255, r"got values from .* to 25\d\.?\d*; 8-bit levels are divided by 255"),
        (IMAGE * 2 - 1, r"got values from -0\.9.*; images in \[-1, 1\] become such by \(image \+ 1\) / 2"),
        ((IMAGE * 255).to(torch.uint8), r"got torch.uint8; 8-bit pixels become such by \.float\(\) / 255"),
        (IMAGE.movedim(1, -1), r"got \[1, 6, 5, 3\]; the channels come before height and width: \.movedim"),
        (IMAGE[0].movedim(0, -1), r"got \[6, 5, 3\]; the channels come before"),
        (IMAGE[0], r"got \[3, 6, 5\]; a single image needs \[None\]"),
        (IMAGE[:, :1], r"got \[1, 1, 6, 5\]; grey images need"),
        (IMAGE.repeat(1, 2, 1, 1)[:, :4], r"got \[1, 4, 6, 5\]; leave the alpha channel out"),
        (IMAGE[..., :0], r"got \[1, 3, 6, 0\]"),
        (IMAGE.where(IMAGE < 0.9, torch.nan), "got values from nan to nan; it holds NaN"),
        (IMAGE.numpy(), r"got a ndarray; torch\.from_numpy"),
    ],
)
def test_an_image_of_the_wrong_kind_is_one_error_with_the_way_out(image: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^lr: expected floats \[B,3,h,w\] in \[0, 1\], {said}"):
        make_batch(image, ["a"], scale=4, kernel="matlab")


@pytest.mark.parametrize(
    ("key", "scale", "said"),
    [
        ("abc", 4, "key: expected a list of 1 names, one for each image, got 'abc'"),
        (["a", "b"], 4, "key: expected a list of 1 names"),
        (["a"], 0, "scale: expected a whole number of at least 1, got 0"),
        (["a"], 2.5, r"scale: expected a whole number of at least 1, got 2\.5"),
    ],
)
def test_wrong_names_and_scales_are_named(key: list[str], scale: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_batch(IMAGE, key, scale=scale, kernel="matlab")


def test_a_right_image_becomes_a_batch() -> None:
    batch = make_batch(IMAGE, ["a"], scale=4, kernel="nearest")
    assert torch.equal(batch["lr"], IMAGE * 2 - 1) and batch["up"].shape == (1, 3, 24, 20)
