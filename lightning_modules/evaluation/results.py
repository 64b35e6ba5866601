"""`results.json`: the scores of each image beside everything that they depend on."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_modules.whole_file import whole_file

FORMAT = 1
NAME = "results.json"
NEEDED = ("definitions", "means", "rows", "data", "method", "measured", "baseline")


class ResultsError(ValueError):
    """A results file that cannot be used; the message names the file, the reason and the way out."""


@dataclass(frozen=True)
class Results:
    """One results file.

    Attributes:
        path: The file.
        content: What it holds; the README lists the entries.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def protocol(self) -> str | None:
        """The name of the protocol, such as "classic-bicubic-x4-y@1"; None where it was measured under none."""
        name: str | None = self.content.get("protocol")
        return name

    @property
    def baseline(self) -> str | None:
        """What the model is compared with in the file itself, such as "bicubic"; None where there is nothing."""
        name: str | None = self.content["baseline"]
        return name

    @property
    def definitions(self) -> Mapping[str, Mapping[str, Any]]:
        """`definition`, `better` and `weights` of each score, by name."""
        definitions: Mapping[str, Mapping[str, Any]] = self.content["definitions"]
        return definitions

    @cached_property
    def images(self) -> list[str]:
        """The keys of all images, in order."""
        return list(dict.fromkeys(str(row["image"]) for row in self.content["rows"]))

    @cached_property
    def _values(self) -> dict[str, dict[str, dict[str, float | None]]]:
        table: dict[str, dict[str, dict[str, float | None]]] = {}
        for row in self.content["rows"]:
            for column in ("model", self.baseline):
                if column is not None and column in row:
                    table.setdefault(column, {}).setdefault(row["score"], {})[row["image"]] = _number(row[column])
        return table

    def values(self, score: str, column: str = "model") -> dict[str, float]:
        """The values of one score, by image; empty where the score is one of whole sets.

        Args:
            score: Its name.
            column: "model", or the baseline's name.

        Raises:
            ResultsError: the value of an image is NaN.
        """
        values: dict[str, float] = {}
        for image, value in self._values.get(column, {}).get(score, {}).items():
            if value is None:
                raise ResultsError(
                    f"{self.path}: {image}: {score} is NaN; leave the score or the image out, or look at the image"
                )
            values[image] = value
        return values

    def mean(self, score: str, column: str = "model") -> float:
        """The number that stands for the whole set.

        Raises:
            ResultsError: it is NaN.
        """
        value = _number(self.content["means"][score][column])
        if value is None:
            if any(math.isinf(each) for each in self.values(score, column).values()):  # of NaN this names the image
                return math.inf
            raise ResultsError(f"{self.path}: {score} of all images is NaN; leave this score out")
        return value

    def picture(self, kind: str, image: str) -> Path | None:
        """The file of an image's picture `sr`, `hr` or `lr`; None where there is none."""
        place = (self.content.get("pictures") or {}).get(kind)
        if place is None:
            return None
        # A folder of files named by keys, or each file by its key.
        path = Path(place.get(image, "/none")) if isinstance(place, dict) else self.path.parent / place / f"{image}.png"
        return path if path.is_file() else None


def read_results(path: str | Path) -> Results:
    """Reads a results file, or the one in a folder.

    Raises:
        ResultsError: it is missing, cut off, no results file of this version, or holds something else than it must.
    """
    path = Path(path).expanduser()
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise ResultsError(f"{path}: no such results file; `lightning test` and `lightning score` write them")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: is cut off or no results file ({error}); measure it again") from error

    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultsError(f"{path}: is no results file of this version (`format` is not {FORMAT}); measure it again")
    missing = [key for key in NEEDED if key not in content]
    if missing:
        raise ResultsError(f"{path}: lacks {', '.join(missing)}; measure it again")
    for wrong in _wrong(content):
        raise ResultsError(f"{path}: {wrong}; measure it again")
    return Results(path, content)


def _wrong(content: Mapping[str, Any]) -> Iterator[str]:
    """What of an entry is not as `write_results` is given it."""
    for name in ("definitions", "means", "data", "method", "measured"):
        if not isinstance(content[name], dict):
            yield f"{name} must be a mapping, got {content[name]!r:.80}"
    for name in ("name", "sampler", "config_sha256"):
        if name not in content["method"]:
            yield f"method lacks {name}"

    columns = ["model"] + ([content["baseline"]] if content["baseline"] is not None else [])
    for score, definition in content["definitions"].items():
        if not isinstance(definition, dict) or definition.get("better") not in ("higher", "lower"):
            yield f"definitions: {score} must say whether higher or lower is better, got {definition!r:.80}"
        means = content["means"].get(score)
        if not isinstance(means, dict) or not all(column in means and _is_number(means[column]) for column in columns):
            yield f"means: {score} must have a number for {' and '.join(columns)}, got {means!r:.80}"

    for row in content["rows"] if isinstance(content["rows"], list) else [content["rows"]]:
        named = isinstance(row, dict) and isinstance(row.get("image"), str) and isinstance(row.get("score"), str)
        if not named or not all(_is_number(row.get(column)) for column in columns):
            yield f"rows must name image and score and have a number for {' and '.join(columns)}, got {row!r:.120}"


def _is_number(value: Any) -> bool:
    """Whether a value is one that `write_results` writes for a number."""
    return value in (None, "Infinity", "-Infinity") or (isinstance(value, int | float) and not isinstance(value, bool))


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a results file, whole or not at all; NaN becomes null, and infinite numbers the words for them."""
    with whole_file(path) as part:
        part.write_text(json.dumps(_plain({"format": FORMAT, **content}), indent=1, allow_nan=False) + "\n")


def table_rows(
    measured: Mapping[str, Mapping[str, float]], names: Sequence[str], columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row for each image and score.

    Args:
        measured: The values of each image, by key and by the score's name with its prefix.
        names: The scores, without prefixes.
        columns: The prefix of the names by column: `{"model": "", "bicubic": "bicubic/"}`.
    """
    return [
        {"image": key, "score": name} | {column: values[f"{prefix}{name}"] for column, prefix in columns.items()}
        for key, values in measured.items()
        for name in names
    ]


def table_means(
    means: Mapping[str, float], names: Sequence[str], columns: Mapping[str, str]
) -> dict[str, dict[str, float | None]]:
    """The means of each score by column, as `table_rows` names them; None where one is NaN or infinite."""
    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = {column: means[f"{prefix}{name}"] for column, prefix in columns.items()}
        found[name] = {column: value if math.isfinite(value) else None for column, value in values.items()}
    return found


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
