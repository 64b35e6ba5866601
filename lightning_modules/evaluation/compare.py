"""`lightning compare`: from results files to a paper's table, its figures, and a page to look at the pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.evaluation.comparison import Comparison, compare
from lightning_modules.evaluation.figures import draw_crops, draw_quality_against_time, panels
from lightning_modules.evaluation.page import write_page
from lightning_modules.evaluation.results import Results, read_results
from lightning_modules.evaluation.tables import differences_table, facts, latex, markdown, scores_table


def main(arguments: Sequence[str]) -> None:
    """`lightning compare [NAME=]RESULTS ... --out FOLDER`.

    Args:
        arguments: Everything after `lightning compare`.

    Raises:
        ResultsError: a file is damaged, or results cannot stand in one table.
        ModuleNotFoundError: the extra `report` is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="lightning compare",
        description="Puts results files (of `lightning test` and `lightning score`) into one table: compare.md, "
        "compare.tex and compare.html with a slider between any two methods, a figure of crops where methods disagree "
        "most, and quality against time. Files of one NAME are seeds of one method.",
    )
    parser.add_argument("results", nargs="+", metavar="[NAME=]RESULTS", help="results.json, or the folder it is in")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--against", metavar="NAME", help="row that differences are taken from (default: the first)")
    parser.add_argument("--scores", metavar="A,B,...", help="columns (default: the protocol's, or all)")
    parser.add_argument("--images", type=int, default=4, help="how many images are shown (default: 4)")
    asked = parser.parse_args(arguments)

    named = [named_results(text) for text in asked.results]
    comparison = compare(named, asked.scores.split(",") if asked.scores else None, asked.against)
    write_report(comparison, asked.out, asked.images)
    print(markdown(scores_table(comparison)))
    for name in ("compare.md", "compare.tex", "compare.html"):
        print(asked.out / name)


def named_results(text: str) -> tuple[str | None, Results]:
    """The name and the results of `NAME=PATH` or `PATH`."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, read_results(text)
    return name, read_results(path)


def write_report(comparison: Comparison, folder: Path, images: int) -> None:
    """Writes all files of a comparison.

    Args:
        comparison: What is compared.
        folder: Where to.
        images: How many images are shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = panels(comparison, images)
    figures = []
    if shown:
        draw_crops(comparison, shown, folder)
        figures.append(folder / "crops.png")
    if draw_quality_against_time(comparison, folder):
        figures.append(folder / "quality_against_time.png")

    tables = [table for table in (scores_table(comparison), differences_table(comparison)) if table is not None]
    listed = "\n".join(f"- {fact}" for fact in facts(comparison))
    pictures = [f"![{figure.stem}]({figure.name})" for figure in figures]
    (folder / "compare.md").write_text("\n\n".join([*map(markdown, tables), listed, *pictures]) + "\n")
    comments = "\n".join(f"% {fact}" for fact in facts(comparison))
    (folder / "compare.tex").write_text("\n\n".join([comments, *map(latex, tables)]) + "\n")
    write_page(comparison, shown, figures, folder / "compare.html")
