"""The model card of an export: what it is for, what was measured, what it was trained on, what it cannot do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.evaluation.results import Results
from lightning_modules.exporting.frozen_parts import FrozenPart
from lightning_modules.weights import DESCRIPTION, MODEL

NAME = "README.md"


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        name: Of the model.
        method: Name of its class.
        sampling: Its procedure, such as "ddim-5".
        scale: How many times larger it makes an image; None where its checkpoint does not say.
        stored: Which weights, in which precision, and how many numbers.
        steps: Steps that it was trained for; None where its checkpoint does not say.
        data: `{"class_path", "init_args"}` of the data that it was trained on.
        source: The checkpoint's file name and sha256.
        frozen: Its parts that are not in the folder.
        results: What was measured with the checkpoint.
        licence: Of the weights.
        notes: What it cannot do, and whatever else is to be known.
        onnx: What was compared of the ONNX file; None where there is none.
    """

    name: str
    method: str
    sampling: str
    scale: int | None
    stored: str
    steps: int | None
    data: Mapping[str, Any]
    source: str
    frozen: Sequence[FrozenPart]
    results: Sequence[Results]
    licence: str | None
    notes: Sequence[str]
    onnx: str | None


def card(facts: Facts) -> str:
    """The text, Markdown with the header that hubs read."""
    header: dict[str, Any] = {"library_name": "diffsr", "pipeline_tag": "image-to-image"}
    header["tags"] = ["super-resolution", facts.method]
    if facts.licence is not None:
        header["license"] = facts.licence
    scale = "" if facts.scale is None else f" x{facts.scale}"
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {facts.name}",
        f"Super-resolution{scale} of photographs with {facts.method}, procedure `{facts.sampling}`. {facts.stored}.",
        _usage(),
        f"## Results\n\n{_results(facts.results)}",
        f"## Training\n\n{_training(facts)}",
    ]
    if facts.frozen:
        listed = "\n".join(f"- {part.described()}" for part in facts.frozen)
        sections.append(f"## Not in this folder\n\nFrozen parts with a source of their own:\n\n{listed}")
    limits = "\n".join(f"- {note}" for note in facts.notes) or "Nothing is said about them."
    sections += [f"## Limits\n\n{limits}", f"## Licence\n\n{facts.licence or 'None was given.'}"]
    if facts.onnx is not None:
        sections.append(f"## ONNX\n\nInput `lr` and output `sr`, RGB in [0, 1], of any size. {facts.onnx}.")
    return "\n\n".join(sections) + "\n"


def _usage() -> str:
    return (
        "```bash\n"
        "lightning enlarge PHOTOS -o ENLARGED --weights THIS_FOLDER\n"
        "lightning verify THIS_FOLDER\n"
        "```\n\n"
        f"`{MODEL}` holds the weights, `{DESCRIPTION}` the method, and `pairs/` three small images before and after."
    )


def _results(results: Sequence[Results]) -> str:
    return "\n\n".join(map(_measured, results)) or "Nothing was measured with these weights."


def _measured(results: Results) -> str:
    content, baseline = results.content, results.baseline
    columns = ["model", *([baseline] if baseline else [])]
    rows = [f"| {results.protocol or 'no protocol'} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for score, means in content["means"].items():
        values = [means.get(column) for column in columns]
        shown = ["-" if value is None else f"{float(value):.4g}" for value in values]
        rows.append(f"| {score} | {' | '.join(shown)} |")

    data, run = content["data"], content.get("run") or {}
    where = [f"{key} {run[key]}" for key in ("precision", "device", "torch", "diffsr", "commit") if run.get(key)]
    said = [f"{len(results.images)} images of {str(data.get('class')).rpartition('.')[2]}"]
    said += [content["method"]["sampler"]] if content["method"].get("sampler") else []
    said += [f"checkpoint {str((content.get('checkpoint') or {}).get('sha256'))[:12]}", *where]
    return "\n".join(rows) + f"\n\nMeasured on {'; '.join(said)}."


def _training(facts: Facts) -> str:
    arguments = dict(facts.data.get("init_args") or {})
    shown = {
        key: arguments[key] for key in ("train", "root", "scale", "up_kernel", "crop", "paired") if arguments.get(key)
    }
    if arguments.get("degradation"):
        shown["degradation"] = arguments["degradation"]["class_path"]
    kind = facts.data.get("class_path") or "data that the checkpoint does not name"
    steps = "" if facts.steps is None else f" for {facts.steps:,} steps"
    named = arguments.get("degradation") or arguments.get("paired")
    degraded = "" if named else " Low-resolution images: MATLAB bicubic."
    listed = f"\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```" if shown else ""
    return f"On `{kind}`{steps}.{degraded} All settings: `{DESCRIPTION}`. Exported from {facts.source}.{listed}"


def write_card(folder: Path, facts: Facts) -> None:
    """Writes the card into an export."""
    (folder / NAME).write_text(card(facts))
