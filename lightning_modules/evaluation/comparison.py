"""Results files side by side: which of them are seeds of one method, whether they may be compared, and what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_modules.evaluation.results import Results, ResultsError

SHOWN = 5  # of many images, in messages
SAMPLES = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Method:
    """One row of a table: the results of one method, one for each seed.

    Attributes:
        label: What the row is called.
        seeds: Its results.
        column: Which of their columns: "model", or the baseline's name.
    """

    label: str
    seeds: Sequence[Results]
    column: str = "model"

    def means(self, score: str) -> list[float]:
        """The number of each seed."""
        return [results.mean(score, self.column) for results in self.seeds]

    def mean(self, score: str) -> float:
        """The mean over seeds."""
        return fmean(self.means(score))

    def deviation(self, score: str) -> float | None:
        """The standard deviation over seeds; None of fewer than two."""
        return stdev(self.means(score)) if len(self.seeds) > 1 else None

    def values(self, score: str) -> Mapping[str, float]:
        """The mean over seeds of each image; empty for scores of whole sets."""
        each = [results.values(score, self.column) for results in self.seeds]
        return {image: fmean(values[image] for values in each) for image in each[0]}

    def cost(self, name: str) -> float | None:
        """The mean over seeds of an entry of `cost` or `times`; None where it was not measured."""
        if self.column != "model":
            return None
        found = [(results.content.get(part) or {}).get(name) for results in self.seeds for part in ("cost", "times")]
        numbers = [float(value) for value in found if value is not None]
        return fmean(numbers) if len(numbers) == len(self.seeds) else None


@dataclass(frozen=True)
class Difference:
    """How a row differs from the one it is compared with, over images.

    Attributes:
        mean: Of the differences.
        low: Lower end of the 95 % interval of a paired bootstrap over images.
        high: Upper end.
        p: Two-sided: how often, with other images, the sign would be the other one.
    """

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """Methods that were measured on the same images under the same protocol.

    Attributes:
        methods: The rows; the baseline's first.
        scores: The columns.
        against: The row that differences are taken from.
        notes: What a reader of the table must know.
    """

    methods: Sequence[Method]
    scores: Sequence[str]
    against: Method
    notes: Sequence[str]

    @property
    def first(self) -> Results:
        """Any of the results, for what all have in common."""
        return self.methods[-1].seeds[0]

    def higher_is_better(self, score: str) -> bool:
        """The direction."""
        return bool(self.first.definitions[score]["better"] == "higher")

    def ranked(self, score: str) -> list[Method]:
        """The rows from best to worst."""
        return sorted(self.methods, key=lambda method: method.mean(score), reverse=self.higher_is_better(score))

    @cached_property
    def differences(self) -> Mapping[tuple[str, str], Difference]:
        """By row and score, for scores of images; a row is not compared with itself."""
        images = self.first.images
        if not images:
            return {}
        counts = _resamples(len(images))

        found = {}
        for score in self.scores:
            reference = self.against.values(score)
            if not reference:
                continue
            for method in self.methods:
                if method is self.against:
                    continue
                values = method.values(score)
                found[method.label, score] = bootstrap(
                    np.array([values[image] - reference[image] for image in images]), counts
                )
        return found


def _resamples(images: int) -> NDArray[np.float64]:
    """How often each image is drawn in each sample, `[SAMPLES,images]`; the same for all rows and scores."""
    draws = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=SAMPLES)
    return np.asarray(draws / images, dtype=np.float64)


def bootstrap(differences: NDArray[np.float64], counts: NDArray[np.float64]) -> Difference:
    """The paired bootstrap (Efron and Tibshirani 1993, chapters 13 and 16) of the mean difference.

    Args:
        differences: Of each image.
        counts: The share of each image in each sample, `[samples,images]`.
    """
    finite = np.isfinite(differences)  # of images that equal their target PSNR is infinite: they are left out
    differences, counts = differences[finite], counts[:, finite]
    if not len(differences):
        return Difference(float("nan"), float("nan"), float("nan"), float("nan"))
    counts = counts[counts.any(axis=1)]
    means = counts @ differences / counts.sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
    return Difference(float(differences.mean()), float(low), float(high), p)


def compare(
    named: Sequence[tuple[str | None, Results]], scores: Sequence[str] | None, against: str | None
) -> Comparison:
    """Groups results to rows.

    Args:
        named: Results, and what their rows are called; by default after the method and its sampler.
        scores: The columns; by default the protocol's, or all that every file has.
        against: The row that differences are taken from; by default the first file's.

    Raises:
        ResultsError: results cannot stand in one table.
    """
    every = [results for _, results in named]
    same_protocol(every)
    same_images(every)
    columns, notes = _columns(every, scores)
    same_definitions(every, columns)
    methods = _group(named)
    baselines = _baselines(methods)
    notes += _differing_inputs(every)

    rows = [*baselines, *methods]
    reference = methods[0]
    if against is not None:
        found = [row for row in rows if row.label == against]
        if not found:
            raise ResultsError(f"--against {against}: no such row; there are {', '.join(row.label for row in rows)}")
        reference = found[0]
    return Comparison(rows, columns, reference, notes)


def same_protocol(every: Sequence[Results]) -> None:
    """Refuses results of two protocols.

    Raises:
        ResultsError: both are named, each with a file.
    """
    of = {str(results.protocol or "no protocol"): results.path for results in every}
    if len(of) > 1:
        listed = ", ".join(f"{name} ({path})" for name, path in of.items())
        raise ResultsError(f"results of different protocols have no place in one table: {listed}")


def same_images(every: Sequence[Results]) -> None:
    """Refuses results of different images.

    Raises:
        ResultsError: names files and images.
    """
    first = every[0]
    for other in every[1:]:
        apart = sorted(set(first.images) ^ set(other.images))
        if apart:
            listed = ", ".join(apart[:SHOWN]) + (f" and {len(apart) - SHOWN} more" if len(apart) > SHOWN else "")
            raise ResultsError(
                f"{first.path} has {len(first.images)} images, {other.path} {len(other.images)}; only one of them has "
                f"{listed}. (`lightning score --set NAME` says how keys begin.)"
            )
        hashes = [results.content["data"].get("hr_sha256") for results in (first, other)]
        if None not in hashes and hashes[0] != hashes[1]:
            raise ResultsError(
                f"{first.path} and {other.path}: the targets have the same names but other pixels; measure both on the "
                "same files"
            )


def same_definitions(every: Sequence[Results], scores: Sequence[str]) -> None:
    """Refuses scores of one name that were taken differently.

    Raises:
        ResultsError: names the files and what differs.
    """
    first = every[0]
    for other in every[1:]:
        for score in scores:
            mine, theirs = first.definitions[score], other.definitions[score]
            if mine != theirs:
                raise ResultsError(
                    f"{score} is defined differently in {first.path} and in {other.path}: {mine} and {theirs}"
                )
        for key in ("border", "mean"):
            borders = [results.content["measured"].get(key) for results in (first, other)]
            if borders[0] != borders[1]:
                raise ResultsError(f"{first.path} has {key} {borders[0]}, {other.path} {key} {borders[1]}")


def _columns(every: Sequence[Results], asked: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The scores that are shown, and notes on those that are not."""
    wanted = asked or every[0].content.get("columns") or list(every[0].definitions)
    lacking = {score: [each.path for each in every if score not in each.definitions] for score in wanted}
    columns = [score for score in wanted if not lacking[score]]
    for score, paths in lacking.items():
        if paths and asked:
            raise ResultsError(f"{score}: not measured in {', '.join(map(str, paths))}")

    if not columns:
        raise ResultsError(f"no score was measured in all files: {', '.join(str(each.path) for each in every)}")
    left_out = [
        f"{score} is left out: not measured in {', '.join(map(str, paths))}"
        for score, paths in lacking.items()
        if paths
    ]
    return columns, left_out


def _group(named: Sequence[tuple[str | None, Results]]) -> list[Method]:
    """Rows, in the order in which they are first named."""
    groups: dict[str, list[tuple[str | None, Results]]] = {}
    for name, results in named:
        groups.setdefault(name or default_label(results), []).append((name, results))
    for label, members in groups.items():
        _check_seeds(label, members)
    return [Method(label, [results for _, results in members]) for label, members in groups.items()]


def default_label(results: Results) -> str:
    """The method with its sampler: "SR3 + YODA, ddim-10"."""
    method = results.content["method"]
    return ", ".join(str(part) for part in (method["name"], method["sampler"]) if part)


def _check_seeds(label: str, members: Sequence[tuple[str | None, Results]]) -> None:
    seen: dict[Any, Results] = {}
    for _, results in members:
        content = results.content
        run = (
            (content.get("checkpoint") or {}).get("sha256"),
            (content.get("run") or {}).get("seed"),
            str(content.get("pictures")) if content.get("checkpoint") is None else "",
        )
        if run in seen:
            raise ResultsError(f"{seen[run].path} and {results.path} are the same run: same checkpoint, same seed")
        seen[run] = results

    first = members[0][1]
    for name, results in members:
        same = results.content["method"]["config_sha256"] == first.content["method"]["config_sha256"]
        if name is None and not same:
            raise ResultsError(
                f"{first.path} and {results.path} are both called {label!r}, but their methods are configured "
                "differently: name them apart, A=FILE B=FILE, or alike, A=FILE A=FILE, if they are seeds of one method"
            )


def _baselines(methods: Sequence[Method]) -> list[Method]:
    """The row of plain enlargement, from the first results that have it."""
    found = [results for method in methods for results in method.seeds if results.baseline is not None]
    return [Method(results.baseline or "", [results], results.baseline or "") for results in found[:1]]


def _differing_inputs(every: Sequence[Results]) -> list[str]:
    hashes = {results.content["data"].get("lr_sha256") for results in every} - {None}
    devices = {
        str((results.content.get("run") or {}).get("device")) for results in every if results.content.get("times")
    }
    notes = []
    if len(hashes) > 1:
        notes.append("the methods were given low-resolution images of different pixels (another degradation or device)")
    if len(devices) > 1:
        notes.append(f"times were taken on different devices: {', '.join(sorted(devices))}")
    return notes
