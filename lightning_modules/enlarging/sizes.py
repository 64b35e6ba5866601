"""Sizes as people say them: times larger, a width, a height, or a box to fit into."""

import re
from dataclasses import dataclass

STRETCH = 1.25  # how far beyond the model's scale an image is resampled rather than enlarged once more


class SizeError(ValueError):
    """A size that cannot be had; the message says why."""


@dataclass(frozen=True)
class Size:
    """What size was asked for; nothing: the model's scale. The sides keep their ratio.

    Attributes:
        scale: How many times longer each side becomes.
        width: In pixels, at most.
        height: In pixels, at most.

    Raises:
        SizeError: several were given, or one is not positive.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.scale, self.width, self.height) if value is not None]
        if self.scale is not None and len(given) > 1:
            raise SizeError("scale and a size in pixels: give one of them")
        if any(not value > 0 for value in given):
            raise SizeError(f"size: {', '.join(map(str, given))} must be above 0")

    @classmethod
    def parse(cls, text: str) -> "Size":
        """The size that "3840x2160" says.

        Raises:
            SizeError: it says none.
        """
        found = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", text)
        if found is None:
            raise SizeError(f"size: {text!r} is not of the form 3840x2160")
        return cls(width=int(found[1]), height=int(found[2]))

    def of(self, width: int, height: int, scale: int) -> tuple[int, int]:
        """Width and height of the result for an image; `scale` is the model's."""
        limits = [limit / side for limit, side in ((self.width, width), (self.height, height)) if limit is not None]
        factor = min(limits) if limits else self.scale or scale
        return max(round(width * factor), 1), max(round(height * factor), 1)


def passes(size: tuple[int, int], target: tuple[int, int], scale: int) -> int:
    """How many times a model of a scale is applied to an image of `size`; 0 where the result is no larger.

    Raises:
        SizeError: more than two times would be needed.
    """
    factor = max(target[0] / size[0], target[1] / size[1])
    if factor <= 1:
        return 0
    if factor <= scale * STRETCH:
        return 1
    if factor <= scale**2 * STRETCH:
        return 2
    raise SizeError(
        f"{target[0]}x{target[1]} pixels are x{factor:.3g}, and more than two passes of a model for x{scale} only "
        f"invent; ask for x{scale**2} at most"
    )


def story(size: tuple[int, int], target: tuple[int, int], scale: int) -> str:
    """How an image comes to its size, for the log; empty where the model's scale is what was asked for."""
    count = passes(size, target, scale)
    drawn = size[0] * scale**count, size[1] * scale**count
    if count == 0:
        return f"is no smaller than {target[0]}x{target[1]} pixels: resampled without the model"
    times = "once" if count == 1 else "twice"
    if drawn == target:
        return "" if count == 1 else f"sampled {times} at x{scale}"
    return f"sampled {times} at x{scale} to {drawn[0]}x{drawn[1]}, then resampled to {target[0]}x{target[1]} pixels"
