"""Pictures of a comparison: crops where methods disagree most, and quality against time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from datamodules.degradations.enlarge import enlarge
from datamodules.images import ImageError, Pixels, decode
from lightning_modules.evaluation.comparison import Comparison, Method
from lightning_modules.evaluation.results import Results, ResultsError

BOX = 64  # side of a crop, in pixels
ACCENT = "#d7263d"


@dataclass(frozen=True)
class Panel:
    """One image of all methods.

    Attributes:
        key: The image.
        layers: Its pixels `[H,W,3]` by label: the plain enlargement, each method, and "HR".
        box: Where the methods disagree most: top, left and side in pixels.
    """

    key: str
    layers: Mapping[str, Pixels]
    box: tuple[int, int, int]


def panels(comparison: Comparison, count: int) -> list[Panel]:
    """The images in which methods disagree most by the first score, with their pictures where there are any."""
    score = comparison.scores[0]
    values = {method.label: method.values(score) for method in comparison.methods}
    if not all(values.values()):
        spread = dict.fromkeys(comparison.first.images, 0.0)
    else:
        spread = {
            image: float(np.nan_to_num(np.std([each[image] for each in values.values()]), nan=0.0, posinf=0.0))
            for image in comparison.first.images
        }

    found: list[Panel] = []
    for image in sorted(spread, key=lambda image: -spread[image]):
        if len(found) == count:
            break
        layers = _layers(comparison, image)
        if sum(label != "HR" for label in layers) > 0:
            found.append(Panel(image, layers, _box(layers)))
    return found


def _layers(comparison: Comparison, image: str) -> dict[str, Pixels]:
    """The pictures of one image, of the same size; methods without one are left out."""
    layers: dict[str, Pixels] = {}
    for method in comparison.methods:
        pixels = _enlarged(method.seeds[0], image) if method.column != "model" else _read(method.seeds[0], "sr", image)
        if pixels is not None:
            layers[method.label] = pixels

    targets = (_read(results, "hr", image) for method in comparison.methods for results in method.seeds)
    target = next((pixels for pixels in targets if pixels is not None), None)
    if target is not None:
        sizes = [pixels.shape for pixels in layers.values()] or [target.shape]
        layers["HR"] = target[: sizes[0][0], : sizes[0][1]]

    shape = next(iter(layers.values())).shape if layers else ()
    for label, pixels in layers.items():
        if pixels.shape != shape:
            raise ResultsError(
                f"{image}: the picture of {label} has {pixels.shape[1]}x{pixels.shape[0]} pixels, others "
                f"{shape[1]}x{shape[0]}"
            )
    return layers


def _read(results: Results, kind: str, image: str) -> Pixels | None:
    path = results.picture(kind, image)
    if path is None:
        return None
    try:
        return decode(path, str(path))
    except ImageError as error:
        raise ResultsError(f"{error}; measure it again, or delete the file to compare without it") from error


def _enlarged(results: Results, image: str) -> Pixels | None:
    """The plain enlargement of the low-resolution picture, MATLAB's bicubic."""
    small, large = _read(results, "lr", image), results.picture("sr", image)
    if small is None or large is None:
        return None
    scale = decode(large, str(large)).shape[1] // small.shape[1]
    lr = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    up = enlarge(lr, scale=scale, kernel="matlab")
    return np.asarray((255 * up.clamp(0, 1)).round().to(torch.uint8)[0].permute(1, 2, 0).numpy())


def _box(layers: Mapping[str, Pixels]) -> tuple[int, int, int]:
    """The square in which the methods' pictures differ most."""
    grey = np.stack([pixels.mean(axis=2) for label, pixels in layers.items() if label != "HR"])
    height, width = grey.shape[1:]
    side = min(BOX, height, width)
    disagreement = uniform_filter(grey.var(axis=0), side, mode="constant")
    top, left = np.unravel_index(int(disagreement.argmax()), disagreement.shape)
    corner = (int(np.clip(top - side // 2, 0, height - side)), int(np.clip(left - side // 2, 0, width - side)))
    return (*corner, side)


def draw_crops(comparison: Comparison, shown: Sequence[Panel], folder: Path) -> None:
    """`crops.png` and `crops.pdf`: a row for each image, the whole with its box, then the box of each method and HR."""
    pyplot = _pyplot()
    labels = list(dict.fromkeys(label for panel in shown for label in panel.layers))
    figure, axes = pyplot.subplots(
        len(shown), len(labels) + 1, figsize=(1.7 * (len(labels) + 1), 1.95 * len(shown)), squeeze=False
    )
    score = comparison.scores[0]

    values = {method.label: method.values(score) for method in comparison.methods}
    for row, panel in enumerate(shown):
        top, left, side = panel.box
        whole = panel.layers.get("HR", next(iter(panel.layers.values())))
        axes[row, 0].imshow(whole)
        box = pyplot.Rectangle((left, top), side, side, fill=False, edgecolor=ACCENT, linewidth=1.5)
        axes[row, 0].add_patch(box)
        axes[row, 0].set_title(panel.key, fontsize=7)
        for column, label in enumerate(labels, start=1):
            axis = axes[row, column]
            if label in panel.layers:
                axis.imshow(panel.layers[label][top : top + side, left : left + side], interpolation="nearest")
            value = values.get(label, {}).get(panel.key)
            axis.set_title(label if value is None else f"{label}\n{score} {value:.4g}", fontsize=7)

    for axis in axes.flat:
        axis.set_axis_off()
    _save(figure, folder / "crops")


def draw_quality_against_time(comparison: Comparison, folder: Path) -> bool:
    """`quality_against_time.png` and `.pdf`; False where fewer than two rows have a time.

    Rows of one method are joined from few evaluations to many.
    """
    timed = [method for method in comparison.methods if method.cost("seconds_per_image") is not None]
    if len(timed) < 2:
        return False
    pyplot = _pyplot()
    scores = list(comparison.scores)[:3]

    figure, axes = pyplot.subplots(1, len(scores), figsize=(4.6 * len(scores), 3.6), squeeze=False)
    for axis, score in zip(axes[0], scores, strict=True):
        for family, members in _families(timed).items():
            points = sorted((method.cost("seconds_per_image") or 0.0, method.mean(score)) for method in members)
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=family)
        for method in timed:
            place = (method.cost("seconds_per_image") or 0.0, method.mean(score))
            evaluations = method.cost("evaluations")
            axis.annotate(f"{evaluations:.3g}" if evaluations else "", place, xytext=(3, 3), textcoords="offset points",
                          fontsize=6)  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel("seconds per image (numbers: evaluations)")
        axis.set_ylabel(f"{score} ({'higher' if comparison.higher_is_better(score) else 'lower'} is better)")
        axis.grid(alpha=0.3)

    axes[0][0].legend(fontsize=7)
    _save(figure, folder / "quality_against_time")
    return True


def _families(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """Rows that differ in the number of steps alone: "SR3, ddim-10" and "SR3, ddim-50"."""
    found: dict[str, list[Method]] = {}
    for method in methods:
        name, dash, steps = method.label.rpartition("-")
        found.setdefault(name if dash and steps.isdigit() else method.label, []).append(method)
    return found


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ModuleNotFoundError("figures need matplotlib: install this project's extra `report`") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout(pad=0.4, h_pad=1.2)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=200)
    _pyplot().close(figure)


def cropped(panel: Panel, side: int) -> dict[str, NDArray[np.uint8]]:
    """The layers, of large images the part around the box, at most `side` pixels on each side."""
    top, left, box = panel.box
    height, width = next(iter(panel.layers.values())).shape[:2]
    rows, columns = min(side, height), min(side, width)
    first_row = int(np.clip(top + box // 2 - rows // 2, 0, height - rows))
    first_column = int(np.clip(left + box // 2 - columns // 2, 0, width - columns))
    window = np.s_[first_row : first_row + rows, first_column : first_column + columns]
    return {label: pixels[window] for label, pixels in panel.layers.items()}
