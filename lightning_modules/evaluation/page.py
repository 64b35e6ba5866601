"""A comparison as one self-contained HTML file, with a slider between any two methods and the error map."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from lightning_modules.evaluation.comparison import Comparison
from lightning_modules.evaluation.figures import Panel, cropped
from lightning_modules.evaluation.slider import data_url, render
from lightning_modules.evaluation.tables import differences_table, facts, scores_table

SIDE = 640  # pixels of an image that the page shows around the place where methods disagree


def write_page(comparison: Comparison, shown: Sequence[Panel], figures: Sequence[Path], path: Path) -> None:
    """Writes the page; it needs no other file and no network.

    Args:
        comparison: What is compared.
        shown: Images with their pictures.
        figures: PNG files that are shown below the tables.
        path: The file.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    page = render(
        "page.html.jinja",
        title=comparison.first.protocol or "Comparison",
        scores=scores_table(comparison),
        differences=differences_table(comparison),
        facts=list(facts(comparison)),
        figures=[(figure.stem, data_url(figure.read_bytes())) for figure in figures],
        panels=[_panel(panel) for panel in shown],
        runs=[_run(comparison, label) for label in (method.label for method in comparison.methods)],
    )
    path.write_text(page)


def _panel(panel: Panel) -> dict[str, Any]:
    layers = cropped(panel, SIDE)
    height, width = next(iter(layers.values())).shape[:2]
    return {
        "key": panel.key,
        "width": width,
        "height": height,
        "layers": {label: data_url(_png(pixels)) for label, pixels in layers.items()},
    }


def _run(comparison: Comparison, label: str) -> dict[str, Any]:
    """Where the numbers of a row come from."""
    method = next(method for method in comparison.methods if method.label == label)
    return {
        "label": label,
        "files": [
            {
                "path": str(results.path),
                "checkpoint": (results.content.get("checkpoint") or {}).get("sha256"),
                "run": results.content.get("run") or {},
            }
            for results in method.seeds
        ],
    }


def _png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
