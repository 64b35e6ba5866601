"""Time, work and quality of YODA around the tiles that diffuse, against the same map on whole images.

    chrt -f 10 python benchmarks/sparse_yoda.py CHECKPOINT PHOTOS [--sizes 480x320 1024x1024] [--steps 20 100]
        [--bounds 0.1 0.3] [--statistics tile] [--sampler own] [--precision bf16] [--lpips alexnet_features.safetensors]

For each size, number of steps and lower bound, each photograph is shrunk and enlarged again in three ways: with the map
as it is (`per pixel`), and with the map averaged over tiles, on whole images (`dense`) or around the tiles that diffuse
(`sparse`). The last two have the same noise and differ in nothing else. They take turns; times are medians of the wall
time of the whole `super_resolve`, one photograph at a time, after a round that does not count. `network pixels` is what
the network was shown, over the dense run's; `bookkeeping` what plan, gathering and scattering take of a sparse run.
Photographs are cut to each size, or mirrored where they are smaller. Writes a page, two plots and the numbers.
"""

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from datamodules.batch import Batch, make_batch
from datamodules.degradations.bicubic import Bicubic
from datamodules.degradations.levels import to_uint8
from datamodules.images import decode, find_images
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import data_config, read_checkpoint
from lightning_modules.config import load_method
from lightning_modules.diffusion.samplers import DDIM
from lightning_modules.diffusion.sparse import Activity
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.networks.attention_maps import Sobel

WAYS = ("per pixel", "dense", "sparse")


@dataclass
class Spent:
    """What one run spent."""

    seconds: float = 0.0
    network: float = 0.0  # seconds in the network
    outputs: float = 0.0  # seconds in `Activity.output`, the network's included
    pixels: int = 0  # that the network was shown


@dataclass(frozen=True)
class Row:
    """One photograph, enlarged in one way."""

    size: str
    steps: int
    bound: float
    photograph: str
    way: str
    seconds: float
    bookkeeping: float
    pixels: int
    psnr: float
    lpips: float
    to_dense: float  # PSNR against the dense run, dB


def photograph(path: Path, size: tuple[int, int]) -> Tensor:
    """The centre of a photograph, mirrored where it is smaller, `[1,3,H,W]` in [0, 1]."""
    image = decode(path, path.name)
    missing = [max(want - have, 0) for want, have in zip(size, image.shape, strict=False)]
    image = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")
    top, left = ((have - want) // 2 for want, have in zip(size, image.shape, strict=False))
    image = image[top : top + size[0], left : left + size[1]]
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


class Bench:
    """A checkpoint, enlarging in three ways."""

    def __init__(self, options: argparse.Namespace) -> None:
        model = load_method(options.checkpoint, options.device)
        if not isinstance(model, DiffusionModule):
            raise SystemExit(
                f"{options.checkpoint}: holds a {type(model).__name__}, which does not sample by diffusion"
            )

        self.model, self.options = model, options
        self.scale = int(data_config(read_checkpoint(options.checkpoint))["scale"])
        self.attention: nn.Module = Sobel() if model.region is None else model.region.attention
        self.spent = Spent()
        self._started = 0.0
        model.network.register_forward_pre_hook(self._before)
        model.network.register_forward_hook(self._after)

        self.regions: dict[float, YODA] = {}
        for bound in options.bounds:
            self.regions[bound] = YODA(
                self.attention,
                bound,
                tile=options.tile,
                halo=options.halo,
                statistics=options.statistics,
                whole_end=True,
            ).to(options.device)
            self.regions[bound].check(model.network, tiled=model.tiles is not None, compiled=False)

    def now(self) -> float:
        """Seconds, when the device has finished."""
        if self.options.device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _before(self, network: nn.Module, inputs: Any) -> None:
        self.spent.pixels += inputs[0].shape[0] * inputs[0].shape[-2] * inputs[0].shape[-1]
        self._started = self.now()

    def _after(self, network: nn.Module, inputs: Any, output: Any) -> None:
        self.spent.network += self.now() - self._started

    @contextlib.contextmanager
    def timed_outputs(self) -> Iterator[None]:
        """Inside, what is spent in `Activity.output` is noted."""
        original = Activity.output

        def timed(activity: Activity, *arguments: Any) -> Tensor:
            began = self.now()
            result = original(activity, *arguments)
            self.spent.outputs += self.now() - began
            return result

        with patch.object(Activity, "output", timed):
            yield

    def batch(self, hr: Tensor, name: str) -> Batch:
        """The photograph, shrunk to 8 bits."""
        lr = to_uint8(Bicubic(self.scale).apply(hr, [])).float() / 255
        device = self.options.device
        return make_batch(lr.to(device), [name], scale=self.scale, kernel="matlab")

    def run(self, batch: Batch, way: str, bound: float, steps: int) -> tuple[Tensor, Spent]:
        """The enlarged photograph in [0, 1], and what it took."""
        model, region, self.spent = self.model, self.regions[bound], Spent()
        batch = cast(Batch, dict(batch))
        plain = YODA(self.attention, bound, whole_end=True)
        if way == "dense":  # the tiles' map, which the plain region takes as it is
            size = tuple(side // model.space.factor for side in batch["up"].shape[-2:])
            tiles = region.attend(batch["lr"], size=(size[0], size[1]))
            batch["attention"] = interpolate(tiles, scale_factor=float(model.space.factor), mode="nearest")

        model.region = region if way == "sparse" else plain.to(self.options.device)
        sampler = model.sampler if self.options.sampler == "own" else DDIM(steps)
        autocast = torch.autocast(
            torch.device(self.options.device).type, torch.bfloat16, enabled=self.options.precision == "bf16"
        )
        with autocast, self.timed_outputs():
            began = self.now()
            sr = model.super_resolve(batch, sampler)
            self.spent.seconds = self.now() - began
        return (sr.cpu() + 1) / 2, self.spent

    def rows(self, size: tuple[int, int], steps: int, bound: float) -> Iterator[Row]:
        """Every photograph of one setting."""
        psnr, lpips = PSNR("y"), None
        if self.options.lpips:
            lpips = LPIPS(weights=self.options.lpips)
            lpips.load()

        for path in find_images(self.options.photographs)[: self.options.number]:
            hr, images = photograph(path, size), dict[str, Tensor]()
            batch, spent = self.batch(hr, path.stem), {way: list[Spent]() for way in WAYS}
            for round_ in range(self.options.rounds + 1):
                for way in WAYS:
                    images[way], used = self.run(batch, way, bound, steps)
                    spent[way] += [used] if round_ else []
            inner = slice(self.scale, -self.scale)
            for way in WAYS:
                seconds = statistics.median(used.seconds for used in spent[way])
                extra = statistics.median(used.outputs - used.network for used in spent[way])
                yield Row(
                    f"{size[1]}x{size[0]}",
                    steps,
                    bound,
                    path.stem,
                    way,
                    seconds,
                    extra / seconds,
                    spent[way][0].pixels,
                    psnr(images[way][..., inner, inner], hr[..., inner, inner]).item(),
                    lpips(images[way], hr).item() if lpips else float("nan"),
                    psnr(images[way], images["dense"]).item() if way == "sparse" else float("nan"),
                )


def mean(rows: list[Row], value: Callable[[Row], float]) -> float:
    return statistics.fmean(value(row) for row in rows)


def grouped(rows: list[Row]) -> Iterator[tuple[tuple[str, int, float], dict[str, list[Row]]]]:
    """The rows of each setting by way."""
    for setting in dict.fromkeys((row.size, row.steps, row.bound) for row in rows):
        mine = [row for row in rows if (row.size, row.steps, row.bound) == setting]
        yield setting, {way: [row for row in mine if row.way == way] for way in WAYS}


def table(rows: list[Row]) -> str:
    """Means over the photographs, as Markdown."""
    lines = [
        "| size | steps | l | dense s | sparse s | times faster | network pixels | bookkeeping | PSNR-Y per pixel "
        "| dense | sparse | LPIPS per pixel | dense | sparse | sparse to dense, dB |",
        "|---" * 15 + "|",
    ]
    for (size, steps, bound), ways in grouped(rows):
        dense, sparse = ways["dense"], ways["sparse"]
        seconds = [mean(part, lambda row: row.seconds) for part in (dense, sparse)]
        work = sum(row.pixels for row in sparse) / sum(row.pixels for row in dense)
        psnrs = " | ".join(f"{mean(ways[way], lambda row: row.psnr):.3f}" for way in WAYS)
        lpips = " | ".join(f"{mean(ways[way], lambda row: row.lpips):.4f}" for way in WAYS)
        lines.append(
            f"| {size} | {steps} | {bound} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.2f} "
            f"| {work:.3f} | {mean(sparse, lambda row: row.bookkeeping):.1%} | {psnrs} | {lpips} "
            f"| {mean(sparse, lambda row: row.to_dense):.1f} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Time against the pixels that were evaluated, and PSNR against time, each relative to the dense run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, qualities) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for (size, steps, bound), ways in grouped(rows):
        label = f"{size}, {steps} steps, l = {bound}"
        pairs = list(zip(ways["sparse"], ways["dense"], strict=True))
        area = [sparse.pixels / dense.pixels for sparse, dense in pairs]
        times.scatter(area, [sparse.seconds / dense.seconds for sparse, dense in pairs], s=12, label=label)
        seconds = [mean(ways[way], lambda row: row.seconds) for way in ("dense", "sparse")]
        scores = [mean(ways[way], lambda row: row.psnr) for way in ("dense", "sparse")]
        (line,) = qualities.plot(seconds, scores, linewidth=0.8)
        qualities.scatter(seconds[:1], scores[:1], marker="s", color=line.get_color())
        qualities.scatter(seconds[1:], scores[1:], marker="o", color=line.get_color(), label=label)
    times.plot([0, 1], [0, 1], "--", color="grey", linewidth=0.8)
    times.scatter([1], [1], marker="s", color="black", label="dense")
    times.set(xlabel="pixels that the network was shown, over dense", ylabel="time, over dense")
    qualities.set(xlabel="seconds (squares: dense, circles: sparse)", ylabel="PSNR-Y (dB)", xscale="log")
    times.legend(fontsize=6)
    for panel in (times, qualities):
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def machine(device: str) -> str:
    """What it ran on."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return f"{model.partition(':')[2].strip() or platform.processor()}, {torch.get_num_threads()} threads"


def main() -> None:
    """Measures, prints, plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--number", type=int, default=6, help="photographs of the folder")
    parser.add_argument("--sizes", nargs="+", default=["480x320"], help="width x height, multiples of the tile")
    parser.add_argument("--steps", nargs="+", type=int, default=[20])
    parser.add_argument("--bounds", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--halo", type=int, default=16)
    parser.add_argument("--statistics", choices=("tile", "replay"))
    parser.add_argument("--sampler", choices=("ddim", "own"), default="ddim", help="own: the checkpoint's, once")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lpips", help="file of AlexNet's weights; left out without it")
    parser.add_argument("--name", default="sparse_yoda", help="of the files that are written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    bench, rows = Bench(options), list[Row]()
    for size in options.sizes:
        width, height = (int(side) for side in size.split("x"))
        for steps in options.steps:
            for bound in options.bounds:
                rows += bench.rows((height, width), steps, bound)
                print(table(rows).splitlines()[-1], flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / f"{options.name}.png"
    plot(rows, picture)
    (options.out / f"{options.name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    about = (__doc__ or "").split("\n\n")[2].strip()
    setting = (
        f"{type(bench.model).__name__} x{bench.scale} ({type(bench.model.network).__name__}), {bench.model.protocol()} "
        f"as trained, here {options.sampler}; tile {options.tile}, halo {options.halo}, {options.precision}, "
        f"{options.number} photographs, {options.rounds} rounds; {machine(options.device)}."
    )
    page = ["# YODA around the tiles that diffuse", about, setting, table(rows), f"![plots]({picture.name})"]
    (options.out / f"{options.name}.md").write_text("\n\n".join(page) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
