"""`lightning score`: scores of any folder of anyone's pictures, under any protocol, without a model."""

import argparse
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser
from torch import Tensor
from torchmetrics import Metric

from datamodules.degradations.enlarge import enlarge
from lightning_modules.config import PARSER
from lightning_modules.config_errors import ConfigError, Source, parse
from lightning_modules.config_files import layers, read_yaml
from lightning_modules.evaluation.conventions import Collected
from lightning_modules.evaluation.folders import Pair, check_sizes, pairs_of, read_pair
from lightning_modules.evaluation.protocol import Protocol, read_protocol
from lightning_modules.evaluation.provenance import code, sha256_of
from lightning_modules.evaluation.results import NAME, ResultsError, table_means, table_rows, write_results
from lightning_modules.float64 import widest
from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.metrics.score import Score, SetScore
from lightning_modules.metrics.scorer import AnyScore, Measured, Scorer, classic, means_of
from lightning_modules.metrics.ssim import SSIM

BORDER = 4
MEAN = "of the values of single images, without those that are infinite for the model or for bicubic"


def main(arguments: Sequence[str]) -> None:
    """`lightning score SR [HR] --out FOLDER`.

    Args:
        arguments: Everything after `lightning score`.

    Raises:
        FoldersError: files do not fit together; all are listed.
        ConfigError: a protocol or an overlay cannot be read.
        WeightsError: weights of a score are missing.
        ResultsError: a score is NaN; the others are written.
    """
    asked = _parser().parse_args(arguments)
    protocol = None if asked.protocol is None else read_protocol(asked.protocol)
    border = _border(asked.border, protocol)
    scorer = _scorer(protocol, asked.config)
    if asked.hr is None:
        scorer.without("hr", "compares with targets: give their folder as the second argument")
    if asked.lr is None:
        scorer.without("lr", "compares with low-resolution images: give their folder as --lr")
    if asked.paper is not None and asked.hr is None:
        raise ConfigError("--paper compares with targets: give their folder as the second argument")

    pairs = pairs_of(asked.sr, asked.hr, asked.lr, asked.set or _name_of(asked.hr or asked.sr))
    check_sizes(pairs, asked.crop_hr)
    for score, reason in scorer.load(asked.device).items():
        print(f"not measured: {score} ({reason})")

    collected = None if asked.paper is None else Collected(asked.scale)
    kept, digests = _measure(pairs, scorer, border, asked.device, collected)
    content = _content(kept, scorer, protocol, border, with_bicubic=asked.lr is not None)
    content["method"] = _method(asked.name or _name_of(asked.sr))
    content["data"] = {"hr": asked.hr and str(asked.hr), "count": len(kept), **digests}
    content["run"] = {"device": asked.device, **code()}
    content["pictures"] = _pictures(pairs)

    path = asked.out / NAME
    write_results(path, content)
    _say(content, path)
    for line in collected.lines(asked.paper) if collected is not None else ():
        print(line)
    _refuse_nan(kept, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning score",
        description="Scores a folder of pictures against a folder of targets and writes results.json, which `lightning "
        "compare` reads. Files are matched by name; endings such as x4, _SR or _out do not count.",
    )
    parser.add_argument("sr", type=Path, metavar="SR", help="folder of results, or one picture")
    parser.add_argument("hr", type=Path, metavar="HR", nargs="?", help="folder of targets, for scores that need them")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where results.json is written")
    parser.add_argument("--lr", type=Path, metavar="FOLDER", help="low-resolution images: bicubic is scored beside")
    parser.add_argument("--protocol", metavar="NAME", help="such as classic-bicubic-x4-y@1 (configs/protocol)")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="YAML",
        help="further scores: overlays such as configs/metrics/no_reference.yaml",
    )
    parser.add_argument(
        "--border", type=int, help=f"pixels left out on each side (default: the protocol's or {BORDER})"
    )
    parser.add_argument("--crop-hr", action="store_true", help="cut targets that are longer on the right and below")
    parser.add_argument("--name", help="how tables call these results (default: the folder's name)")
    parser.add_argument("--set", help="how the images' set is called (default: the name of the targets' folder)")
    parser.add_argument("--device", default="cpu", help="where scores are computed (default: cpu)")
    parser.add_argument(
        "--paper",
        type=float,
        nargs="*",
        metavar="NUMBER",
        help="print PSNR and SSIM under all conventions in use, and which one is nearest to a paper's numbers",
    )
    parser.add_argument("--scale", type=int, default=4, help="HR size over LR size, for --paper (default: 4)")
    return parser


def _border(asked: int | None, protocol: Protocol | None) -> int:
    if protocol is None:
        return BORDER if asked is None else asked
    own = protocol.settings.get("border")
    own = protocol.scale if own is None else int(own)
    if asked not in (None, own):
        raise ConfigError(f"--border {asked}: {protocol.name} leaves out {own} pixels; give one of the two options")
    return own


def _scorer(protocol: Protocol | None, overlays: Sequence[Path]) -> Scorer:
    scorer = Scorer([PSNR(), SSIM(), LPIPS(optional=True)] if protocol is None else classic())
    callbacks = [] if protocol is None else list(protocol.callbacks)
    for overlay in overlays:
        for layer in layers(overlay):
            callbacks += (read_yaml(layer).get("trainer") or {}).get("callbacks+") or []
    scorer.add(listed_scores(callbacks))
    return scorer


def listed_scores(callbacks: Sequence[Mapping[str, Any]]) -> list[AnyScore]:
    """The scores that callbacks of a config list.

    Raises:
        ConfigError: one cannot be built.
    """
    listed = [score for callback in callbacks for score in callback.get("init_args", {}).get("scores", [])]
    parser = ArgumentParser(**PARSER)
    parser.add_argument("--scores", type=list[Score | SetScore | Metric])
    if not listed:
        return []
    config = parse(parser, [f"--scores={listed}"], Source())
    return cast(list[AnyScore], parser.instantiate(config)["scores"])


def _name_of(path: Path) -> str:
    """The folder's name, or that of the folder a file is in."""
    return (path if path.is_dir() else path.parent).resolve().name


def _measure(
    pairs: Sequence[Pair], scorer: Scorer, border: int, device: str, collected: Collected | None
) -> tuple[dict[str, Measured], dict[str, str | None]]:
    """What was measured of each image by key, and the hashes of all targets and low-resolution images."""
    kept: dict[str, Measured] = {}
    digests: dict[str, dict[str, str]] = {"hr": {}, "lr": {}}
    for pair in pairs:
        pixels = read_pair(pair)
        for kind in digests:
            if kind in pixels:
                digests[kind][pair.key] = hashlib.sha256(pixels[kind].contiguous().numpy().tobytes()).hexdigest()
        if collected is not None:
            collected.add(pixels["sr"], pixels["hr"])

        images = {kind: image.to(device).to(widest(device)) / 255 for kind, image in pixels.items()}
        measured = {"": images["sr"]}
        if "lr" in images:
            measured["bicubic/"] = bicubic(images["lr"], pixels["sr"].shape[-1] // pixels["lr"].shape[-1])
        (kept[pair.key],) = scorer.measure(
            measured, hr=images.get("hr"), lr=images.get("lr"), keys=[pair.key], border=border
        )
    return kept, {f"{kind}_sha256": sha256_of(found) if found else None for kind, found in digests.items()}


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """MATLAB's enlargement of images `[B,3,h,w]` in [0, 1], of 8 bits."""
    return (255 * enlarge(lr.float(), scale=scale, kernel="matlab").clamp(0, 1)).round().to(lr) / 255


def _content(
    kept: Mapping[str, Measured], scorer: Scorer, protocol: Protocol | None, border: int, with_bicubic: bool
) -> dict[str, Any]:
    """What results hold of the scores."""
    columns = {"model": ""} | ({"bicubic": "bicubic/"} if with_bicubic else {})
    of_images = list(next(iter(kept.values())).scores)
    means, infinite = means_of({key: row.scores for key, row in kept.items()})
    means |= scorer.of_sets(list(kept.values()), list(columns.values()))

    names = [name for name in means if not name.startswith("bicubic/")]
    return {
        "protocol": None if protocol is None else protocol.name,
        "columns": None if protocol is None else protocol.settings["columns"],
        "checkpoint": None,
        "measured": {"pixels": "8 bits", "border": border, "mean": MEAN},
        "definitions": scorer.definitions(),
        "not_measured": scorer.not_measured,
        "baseline": "bicubic" if with_bicubic else None,
        "infinite": infinite,
        "means": table_means(means, names, columns),
        "cost": {},
        "times": {},
        "rows": table_rows(
            {key: row.scores for key, row in kept.items()}, [name for name in names if name in of_images], columns
        ),
    }


def _method(name: str) -> dict[str, Any]:
    """Pictures say nothing of what made them but the name that is given."""
    return {"class": None, "name": name, "sampler": None, "config": {}, "config_sha256": sha256_of({})}


def _pictures(pairs: Sequence[Pair]) -> dict[str, dict[str, str]]:
    """The files by kind and key."""
    kinds: dict[str, dict[str, str]] = {"sr": {}, "hr": {}, "lr": {}}
    for pair in pairs:
        for kind, path in (("sr", pair.sr), ("hr", pair.hr), ("lr", pair.lr)):
            if path is not None:
                kinds[kind][pair.key] = str(path.resolve())
    return {kind: files for kind, files in kinds.items() if files}


def _say(content: Mapping[str, Any], path: Path) -> None:
    for score, values in content["means"].items():
        beside = f" (bicubic {shown(values['bicubic'])})" if "bicubic" in values else ""
        print(f"{score:24s} {shown(values['model'])}{beside}")
    print(f"{content['data']['count']} image(s), border {content['measured']['border']}: {path}")


def shown(value: float | None) -> str:
    """A mean for a terminal."""
    return "not finite" if value is None else f"{value:.4f}"


def _refuse_nan(kept: Mapping[str, Measured], path: Path) -> None:
    nans = [f"{key}: {name} is NaN" for key, row in kept.items() for name in row.scores if math.isnan(row.scores[name])]
    if nans:
        raise ResultsError(
            f"{'; '.join(nans)}. Leave the image or the score out, or look at the image. All other scores are in {path}"
        )
