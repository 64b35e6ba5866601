"""One HTML file with a border between before and after for each picture."""

import io
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from datamodules.photograph import Levels, Photograph, rescaled
from lightning_modules.evaluation.slider import data_url, render
from lightning_modules.whole_file import whole_file

WIDTH, HEIGHT = 960, 720  # pixels of a picture that are shown at most


class Gallery:
    """Collects pictures; `write` makes the page, which needs no other file and no network.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pictures: list[dict[str, Any]] = []

    def add(self, name: str, before: Photograph, after: Photograph, file: Path) -> None:
        """Adds a picture: a photograph, what became of it, and the file of that."""
        width, height = min(after.size[0], WIDTH), min(after.size[1], HEIGHT)
        across, down = after.size[0] / before.size[0], after.size[1] / before.size[1]
        left, top = _place(before.colours, (width / after.size[0], height / after.size[1]))
        x, y = min(round(left * across), after.size[0] - width), min(round(top * down), after.size[1] - height)
        shown = Image.fromarray(_opaque(after, slice(y, y + height), slice(x, x + width)))

        # The same place of the photograph, of which the edges need not be whole pixels.
        sides = (
            x / across,
            y / down,
            min((x + width) / across, before.size[0]),
            min((y + height) / down, before.size[1]),
        )
        first = math.floor(sides[0]), math.floor(sides[1])
        cut = _opaque(before, slice(first[1], math.ceil(sides[3])), slice(first[0], math.ceil(sides[2])))
        box = sides[0] - first[0], sides[1] - first[1], sides[2] - first[0], sides[3] - first[1]
        old = Image.fromarray(cut).resize((width, height), Image.Resampling.BICUBIC, box=box)
        self.pictures.append(
            {
                "name": name,
                "link": quote(os.path.relpath(file, self.path.parent)),
                "facts": f"{before.size[0]}x{before.size[1]} to {after.size[0]}x{after.size[1]} pixels",
                "width": width,
                "height": height,
                "before": data_url(_jpeg(old), "jpeg"),
                "after": data_url(_jpeg(shown), "jpeg"),
            }
        )

    def write(self) -> None:
        """Writes the page.

        Raises:
            OSError: it cannot be written.
        """
        with whole_file(self.path) as part:
            part.write_text(render("gallery.html.jinja", title="Before and after", pictures=self.pictures))


def _place(colours: Levels, share: tuple[float, float]) -> tuple[int, int]:
    """The left and top, in the photograph's pixels, of the part with most detail that is a share of it."""
    height, width = colours.shape[:2]
    columns, rows = max(round(share[0] * width), 1), max(round(share[1] * height), 1)
    if columns >= width and rows >= height:
        return 0, 0
    step = max(max(height, width) // 512, 1)
    grey = rescaled(colours[::step, ::step], np.uint8).mean(axis=-1)
    edges = np.abs(np.gradient(grey, axis=0)) + np.abs(np.gradient(grey, axis=1)) if min(grey.shape) > 1 else grey
    detail = uniform_filter(edges, (max(rows // step, 1), max(columns // step, 1)), mode="constant")
    y, x = np.unravel_index(int(detail.argmax()), detail.shape)
    left, top = int(x) * step - columns // 2, int(y) * step - rows // 2
    return min(max(left, 0), width - columns), min(max(top, 0), height - rows)


def _opaque(photograph: Photograph, rows: slice, columns: slice) -> Any:
    """A part of a photograph over white, 8 bits."""
    pixels = rescaled(photograph.colours[rows, columns], np.uint8)
    if photograph.alpha is None:
        return np.ascontiguousarray(pixels)
    share = rescaled(photograph.alpha[rows, columns], np.uint8)[..., None] / 255
    return (pixels * share + 255 * (1 - share)).round().astype(np.uint8)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
