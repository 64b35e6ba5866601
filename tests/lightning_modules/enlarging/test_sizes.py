"""Sizes as people say them."""

import pytest

from lightning_modules.enlarging.sizes import Size, SizeError, passes, story


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (Size(), (4000, 3000)),
        (Size(2), (2000, 1500)),
        (Size(1.5), (1500, 1125)),
        (Size(width=3840), (3840, 2880)),
        (Size(height=1080), (1440, 1080)),
        (Size.parse("3840x2160"), (2880, 2160)),
        (Size.parse(" 1000 X 5000 "), (1000, 750)),
    ],
)
def test_the_ratio_of_the_sides_is_kept(size: Size, expected: tuple[int, int]) -> None:
    assert size.of(1000, 750, 4) == expected


def test_a_side_is_never_nothing() -> None:
    assert Size(width=10).of(1000, 3, 4) == (10, 1)


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ((100, 75), 0),
        ((50, 38), 0),
        ((101, 76), 1),
        ((400, 300), 1),
        ((500, 375), 1),
        ((501, 376), 2),
        ((2000, 1500), 2),
    ],
)
def test_passes_are_as_few_as_are_sensible(target: tuple[int, int], count: int) -> None:
    assert passes((100, 75), target, 4) == count


def test_more_than_two_passes_are_refused() -> None:
    with pytest.raises(SizeError, match=r"2001x1501 pixels are x20, and more than two passes .*; ask for x16 at most"):
        passes((100, 75), (2001, 1501), 4)


def test_the_log_says_how_a_size_came_about() -> None:
    assert story((100, 75), (400, 300), 4) == ""
    assert story((100, 75), (200, 150), 4) == "sampled once at x4 to 400x300, then resampled to 200x150 pixels"
    assert story((100, 75), (800, 600), 4) == "sampled twice at x4 to 1600x1200, then resampled to 800x600 pixels"
    assert story((100, 75), (1600, 1200), 4) == "sampled twice at x4"
    assert "resampled without the model" in story((100, 75), (50, 38), 4)


def test_a_size_that_says_nothing_or_too_much_is_refused() -> None:
    for text in ("big", "3840", "3840x", "0x10", "-1x5"):
        with pytest.raises(SizeError, match="size: "):
            Size.parse(text)
    with pytest.raises(SizeError, match="give one of them"):
        Size(2, width=100)
