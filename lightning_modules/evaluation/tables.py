"""A comparison as Markdown and LaTeX: the best of each column bold, the second underlined."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_modules.evaluation.comparison import Comparison, Difference, Method

# Columns beside the scores: their title, the entry of `cost` or `times`, and its unit.
COSTS = (
    ("evaluations", "evaluations", 1.0),
    ("s / image", "seconds_per_image", 1.0),
    ("parameters (M)", "parameters", 1e6),
    ("GFLOPs", "flops", 1e9),
)


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        text: The number, with its deviation.
        rank: 1 for the best of its column, 2 for the second, 0 otherwise.
    """

    text: str
    rank: int = 0


@dataclass(frozen=True)
class Table:
    """A table of any kind of output.

    Attributes:
        head: Titles; the first column holds names.
        rows: The name and the cells of each row.
    """

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def scores_table(comparison: Comparison) -> Table:
    """Scores and costs of each row."""
    costs = [cost for cost in COSTS if any(method.cost(cost[1]) is not None for method in comparison.methods)]
    seeds = any(len(method.seeds) > 1 for method in comparison.methods)
    arrows = ["↑" if comparison.higher_is_better(score) else "↓" for score in comparison.scores]
    head = [f"{score} {arrow}" for score, arrow in zip(comparison.scores, arrows, strict=True)]
    head += ["seeds"] if seeds else []
    head += [title for title, _, _ in costs]

    ranks = {score: _ranks(comparison, score) for score in comparison.scores}
    rows = []
    for method in comparison.methods:
        cells = [Cell(_mean(method, score), ranks[score].get(method.label, 0)) for score in comparison.scores]
        cells += [Cell(str(len(method.seeds)))] if seeds else []
        cells += [Cell(_cost(method.cost(entry), unit)) for _, entry, unit in costs]
        rows.append((method.label, cells))
    return Table(["method", *head], rows)


def differences_table(comparison: Comparison) -> Table | None:
    """Mean difference, 95 % interval and p of each row against the chosen one; None if nothing is compared."""
    scores = [score for score in comparison.scores if any(pair[1] == score for pair in comparison.differences)]
    rows = []
    for method in comparison.methods:
        found = [comparison.differences.get((method.label, score)) for score in scores]
        if any(found):
            rows.append((method.label, [Cell("-" if each is None else _difference(each)) for each in found]))
    return Table([f"minus {comparison.against.label}", *scores], rows) if rows else None


def markdown(table: Table) -> str:
    """The table in Markdown."""
    styles = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}
    lines = ["| " + " | ".join(_markdown(title) for title in table.head) + " |"]
    lines.append("|---" * len(table.head) + "|")
    for name, cells in table.rows:
        shown = [styles[cell.rank].format(cell.text) for cell in cells]
        lines.append("| " + " | ".join([_markdown(name), *shown]) + " |")
    return "\n".join(lines)


def latex(table: Table) -> str:
    """The table in LaTeX, for the package booktabs."""
    styles = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    lines = [r"\begin{tabular}{l" + "c" * (len(table.head) - 1) + "}", r"\toprule"]
    lines.append(" & ".join(_latex(title) for title in table.head) + r" \\")
    lines.append(r"\midrule")
    for name, cells in table.rows:
        shown = [styles[cell.rank].format(_latex(cell.text)) for cell in cells]
        lines.append(" & ".join([_latex(name), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def facts(comparison: Comparison) -> Iterator[str]:
    """What a reader must know of a table, one sentence each."""
    content = comparison.first.content
    measured = content["measured"]
    count = content["data"].get("count", len(comparison.first.images))
    yield (
        f"{count} images; protocol {comparison.first.protocol or 'none'}; border {measured['border']}; "
        f"{measured['pixels']}; mean {measured['mean']}."
    )

    if any(len(method.seeds) > 1 for method in comparison.methods):
        yield "± is the standard deviation over seeds."
    if comparison.differences:
        yield (
            f"Differences from {comparison.against.label} over images, with the 95 % interval of a paired bootstrap "
            "and its two-sided p."
        )

    for score in comparison.scores:
        yield f"{score}: {comparison.first.definitions[score]['definition']}."
    for note in comparison.notes:
        yield f"Note: {note}."


def number(value: float) -> str:
    """Four significant places behind a small number, two or three behind a large one."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _mean(method: Method, score: str) -> str:
    deviation = method.deviation(score)
    return number(method.mean(score)) + ("" if deviation is None else f" ± {number(deviation)}")


def _cost(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}" if value / unit < 1000 else f"{value / unit:.0f}"


def _difference(found: Difference) -> str:
    if math.isnan(found.low):
        return number(found.mean)
    p = f"p {found.p:.3f}" if found.p >= 0.001 else "p < 0.001"
    return f"{'+' if found.mean >= 0 else ''}{number(found.mean)} [{number(found.low)}, {number(found.high)}], {p}"


def _ranks(comparison: Comparison, score: str) -> dict[str, int]:
    """1 for the best value, 2 for the next one, as printed: what looks equal is ranked equally."""
    printed = [number(method.mean(score)) for method in comparison.ranked(score)]
    order = list(dict.fromkeys(printed))
    ranks = {method.label: order.index(number(method.mean(score))) + 1 for method in comparison.methods}
    return {label: rank for label, rank in ranks.items() if rank <= 2 and len(order) > 1}


def _markdown(text: str) -> str:
    return text.replace("|", r"\|")


_LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∞": r"$\infty$",
    "<": "$<$",
    ">": "$>$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
