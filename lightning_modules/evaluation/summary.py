"""The short table of a test: the model's scores beside bicubic's, a row for each set."""

from collections.abc import Iterator, Mapping, Sequence

from lightning_modules.evaluation.results import Results, ResultsError
from lightning_modules.evaluation.tables import number

LEFT_OUT = ("psnr_rgb", "ssim_rgb", "colour_error_r", "colour_error_g", "colour_error_b")  # they stand in the results


def table(found: Mapping[str, Results]) -> str:
    """The table in Markdown.

    Args:
        found: The results by the name of the set.
    """
    measured = dict.fromkeys(score for results in found.values() for score in results.content["means"])
    shown = [score for score in measured if score not in LEFT_OUT]
    titles = ["set", "images", *(title for score in shown for title in (score, "bicubic")), "s/image"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    lines += [list(_row(name, results, shown)) for name, results in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, results: Results, shown: Sequence[str]) -> Iterator[str]:
    yield name
    yield str(len(results.images))
    for score in shown:
        for column in ("model", results.baseline):
            yield _cell(results, score, column)
    seconds = (results.content.get("times") or {}).get("seconds_per_image")
    yield "" if seconds is None else f"{seconds:.2f}"


def _cell(results: Results, score: str, column: str | None) -> str:
    """A mean; empty where it was not measured, and NaN where it is that, since the test itself is done and kept."""
    if column is None or score not in results.content["means"]:
        return ""
    try:
        return number(results.mean(score, column))
    except ResultsError:
        return "NaN"
