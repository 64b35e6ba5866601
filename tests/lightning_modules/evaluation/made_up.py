"""Results files of made-up numbers and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.data import astronaut

from lightning_modules.evaluation.provenance import sha256_of
from lightning_modules.evaluation.results import NAME, Results, read_results, write_results

DEFINITIONS = {
    "psnr_y": {"definition": "dB", "better": "higher", "weights": {}},
    "lpips": {"definition": "LPIPS", "better": "lower", "weights": {"alex.pth": "0"}},
    "fid": {"definition": "FID", "better": "lower", "weights": {}},
}


def results_file(folder: Path, values: Mapping[str, Mapping[str, float]], **changes: Any) -> Results:
    """Results of `{score: {image: value}}`, with a baseline a little worse; `changes` replace entries."""
    images = list(next(iter(values.values())))
    rows = [
        {"image": image, "score": score, "model": each[image], "bicubic": each[image] - 1}
        for score, each in values.items()
        for image in images
    ]
    means = {
        score: {"model": float(np.mean(list(each.values()))), "bicubic": float(np.mean(list(each.values()))) - 1}
        for score, each in values.items()
    }
    seed = changes.pop("seed", 0)
    content = {
        "protocol": "made-up@1",
        "columns": None,
        "method": {
            "class": "a.B",
            "name": changes.pop("name", "B"),
            "sampler": "ddim-10",
            "config": {},
            "config_sha256": "c",
        },
        "checkpoint": {"path": "x.ckpt", "sha256": f"weights {seed}"},
        "data": {"up_kernel": "matlab", "hr_sha256": sha256_of(images), "lr_sha256": "l", "count": len(images)},
        "run": {"seed": seed, "device": "cpu"},
        "measured": {"pixels": "8 bits", "border": 4, "mean": "of the values of single images"},
        "definitions": {score: DEFINITIONS[score] for score in values},
        "not_measured": {},
        "baseline": "bicubic",
        "pictures": None,
        "means": means,
        "cost": {"evaluations": 10, "parameters": 2_500_000, "flops": 3e9},
        "times": {"seconds_per_image": 0.5},
        "rows": rows,
    }
    write_results(folder / NAME, {**content, **changes})
    return read_results(folder)


def numbers(seed: int, count: int, mean: float, spread: float = 1.0) -> dict[str, float]:
    """A value for each of `count` images; the images differ in the same way whatever the mean."""
    difficulty = np.random.default_rng(99).normal(0, 3, count)
    noise = np.random.default_rng(seed).normal(0, spread, count)
    return {f"set/{index:03d}": float(mean + difficulty[index] + noise[index]) for index in range(count)}


def pictures(folder: Path, images: list[str], shade: int, size: int = 96) -> dict[str, str]:
    """The entry `pictures` of results in `folder`, and the files: `shade` is added in one corner of each result."""
    for place, key in enumerate(images):
        hr = astronaut()[place : place + size, 100 : 100 + size].astype(int)
        sr = hr.copy()
        sr[size // 2 + 8 : -8, size // 2 + 8 : -8] += shade
        lr = Image.fromarray(hr.astype(np.uint8)).resize((size // 4, size // 4), Image.Resampling.BICUBIC)
        for kind, pixels in (("sr", sr), ("hr", hr), ("lr", np.asarray(lr))):
            path = folder / "images" / kind / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return {kind: f"images/{kind}" for kind in ("sr", "hr", "lr")}
