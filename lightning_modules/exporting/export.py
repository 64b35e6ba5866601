"""`lightning export`: a trained method becomes a folder that others can use, check and publish."""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from datamodules.degradations.bicubic import Bicubic
from datamodules.degradations.degradation import Degradation
from lightning_modules.checkpoint import (
    CheckpointError,
    data_config,
    model_config,
    own_state,
    read_checkpoint,
    write_export,
)
from lightning_modules.config import build, build_part, load_method
from lightning_modules.evaluation.results import Results, ResultsError, read_results
from lightning_modules.exporting.card import Facts, write_card
from lightning_modules.exporting.frozen_parts import frozen_parts
from lightning_modules.exporting.onnx_graph import write_onnx
from lightning_modules.exporting.pairs import low_resolution, photographs, write_pairs
from lightning_modules.super_resolver import SuperResolver
from lightning_modules.weight_files import digest
from lightning_modules.weights import resolve

Weights = Literal["ema", "raw"]


def main(arguments: Sequence[str] | None = None) -> None:
    """`lightning export CKPT FOLDER [--results results.json] [--license NAME] [--note TEXT] ...`.

    Raises:
        CheckpointError: the checkpoint cannot be used, or not in the way that was asked for.
        ResultsError: a results file is of another checkpoint.
        OSError: the folder exists, or cannot be written.
    """
    parser = argparse.ArgumentParser(prog="lightning export", description="Makes a trained method a folder for others.")
    parser.add_argument("checkpoint", help="a checkpoint, an export, or a name that `lightning weights` lists")
    parser.add_argument("folder", type=Path, help="what to write; it must not exist")
    parser.add_argument(
        "--weights", choices=["ema", "raw"], help="the moving average or the last step's (default: the average if any)"
    )
    parser.add_argument("--half", action="store_true", help="store in half precision")
    parser.add_argument("--onnx", action="store_true", help="also model.onnx, of methods with one evaluation")
    parser.add_argument(
        "--results", action="append", default=[], metavar="FILE", help="of `lightning test`; repeatable"
    )
    parser.add_argument("--license", metavar="NAME", help="of the weights, such as apache-2.0")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="what it cannot do; repeatable")
    parser.add_argument("--images", nargs="+", type=Path, metavar="FILE", help="sharp photographs of the pairs")
    parser.add_argument("--name", help="in the card (default: the folder's)")
    parser.add_argument("--device", default="cpu", help="where the pairs are enlarged (default: cpu)")
    asked = parser.parse_args(arguments)

    export(
        asked.checkpoint,
        asked.folder.expanduser(),
        weights=asked.weights,
        half=asked.half,
        onnx=asked.onnx,
        results=asked.results,
        licence=asked.license,
        notes=asked.note,
        images=asked.images,
        name=asked.name,
        device=asked.device,
    )
    size = sum(path.stat().st_size for path in asked.folder.expanduser().rglob("*") if path.is_file())
    print(f"{asked.folder}: {size / 1e6:.1f} MB; lightning verify {asked.folder}")


def export(
    checkpoint: str | Path,
    folder: Path,
    *,
    weights: Weights | None = None,
    half: bool = False,
    onnx: bool = False,
    results: Sequence[str | Path] = (),
    licence: str | None = None,
    notes: Sequence[str] = (),
    images: Sequence[Path] | None = None,
    name: str | None = None,
    device: str = "cpu",
) -> None:
    """Writes `model.safetensors`, `config.yaml`, `README.md` and `pairs/`; the folder appears when it is complete.

    Args:
        checkpoint: See `weights.resolve`.
        folder: What to write.
        weights: "ema" for the moving average, "raw" for those of the last step; None for the average if there is one.
        half: Store weights in half precision; the pairs are made with what is stored.
        onnx: Also write `model.onnx`.
        results: Results files of `lightning test` with this checkpoint, for the card.
        licence: Of the weights, for the card.
        notes: What the model cannot do, for the card.
        images: Sharp photographs of which the pairs are made; bundled ones by default.
        name: In the card; the folder's by default.
        device: Where the pairs are enlarged.

    Raises:
        FileExistsError: the folder exists.
        CheckpointError: the checkpoint cannot be used, or holds no such weights.
        ResultsError: a results file is of another checkpoint.
        OSError: a file cannot be written.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: exists, and nothing is overwritten; name another folder or remove it")
    path = resolve(checkpoint)
    content = read_checkpoint(path)
    config = {"model": model_config(content, path), "data": _data(content)}
    state, kind = _chosen(content, weights, path)
    sha256 = digest(path)
    measured = [_of_this(read_results(file), sha256) for file in results]

    model = build(config["model"], path)
    _load(model, state, path)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_export(own_state(model), config, part, half=half)
        stored = load_method(part)
        compared = write_onnx(stored, part) if onnx else None
        stored.to(device)
        arguments = config["data"].get("init_args") or {}
        scale = int(arguments.get("scale", 4))
        least = max(stored.smallest, stored.padded_to)
        files = photographs() if images is None else [Path(image).expanduser() for image in images]
        small = {file.stem: low_resolution(file, _degradation(arguments, scale), least) for file in files}
        if len(small) < len(files):
            raise ValueError("--images: two of them have the same name; a pair is named after its image")
        write_pairs(part, stored, small, kernel=arguments.get("up_kernel", "matlab"), scale=scale)

        frozen = frozen_parts(model, config["model"])
        numbers = sum(value.numel() for value in own_state(model).values())
        facts = Facts(
            name=name or folder.name,
            method=type(model).__name__,
            sampling=model.protocol(),
            scale=arguments.get("scale"),
            stored=f"{numbers:,} numbers, {kind}, stored in {'half' if half else 'full'} precision",
            steps=content.get("global_step"),
            data=config["data"],
            source=f"`{path.name}` (sha256 {sha256})",
            frozen=frozen,
            results=measured,
            licence=licence,
            notes=notes,
            onnx=compared,
        )
        write_card(part, facts)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)

    for each in frozen:
        rank_zero_info(f"not packed, it has a source of its own: {each.described()}")
        if each.is_local:
            rank_zero_warn(
                f"{each.source}: lies on this machine alone; whoever loads {folder} needs the same file, given as "
                f"{each.option}"
            )
    if compared:
        rank_zero_info(compared)


def _data(content: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the data without absolute paths, which mean nothing on another machine."""
    kind = (content.get("datamodule_hyper_parameters") or {}).get("_class_path")
    arguments = {name: value for name, value in data_config(content).items() if not _is_path(value)}
    return {"class_path": kind, "init_args": arguments} if kind else {}


def _is_path(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_path, value))
    return isinstance(value, str) and Path(value).expanduser().is_absolute()


def _chosen(content: Mapping[str, Any], weights: Weights | None, path: Path) -> tuple[dict[str, Tensor], str]:
    """The weights that were asked for, and what they are called.

    Raises:
        CheckpointError: the averages are asked for, and the checkpoint was trained without.
    """
    averaged, raw = content["state_dict"], content.get("current_model_state")
    if raw is None:
        if weights == "ema":
            raise CheckpointError(
                f"{path}: was trained without a moving average (callbacks.ema.EMA), so that --weights ema has nothing "
                "to take; leave it out"
            )
        return dict(averaged), "weights of the last step"
    if weights == "raw":
        return {**averaged, **raw}, "weights of the last step"
    return dict(averaged), "moving average of the weights"


def _load(model: SuperResolver, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _of_this(results: Results, sha256: str) -> Results:
    """The results, if they are of this checkpoint.

    Raises:
        ResultsError: they are of another.
    """
    tested = (results.content.get("checkpoint") or {}).get("sha256")
    if tested != sha256:
        raise ResultsError(
            f"{results.path}: was measured with another checkpoint (sha256 {str(tested)[:12]}, not {sha256[:12]}); "
            "test this one: lightning test --ckpt_path ..."
        )
    return results


def _degradation(arguments: Mapping[str, Any], scale: int) -> Degradation:
    """What the training degraded with; MATLAB's bicubic where it names nothing."""
    described = arguments.get("degradation")
    if not isinstance(described, Mapping):
        return Bicubic(scale)
    inside = {"data": {"init_args": {"scale": scale, "degradation": dict(described)}}}
    part: Degradation = build_part(Degradation, "data.init_args.degradation", [inside], [])[0]
    return part
