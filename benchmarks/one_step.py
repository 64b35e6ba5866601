"""A student of one evaluation against its teacher: quality, and the time of an image.

    chrt -f 10 python benchmarks/one_step.py TEACHER.ckpt TEST --train PHOTOGRAPHS (--minutes 60 | --updates 2000)
        [--steps 15] [--precision bf16] [--lpips alexnet_features.safetensors] [FURTHER OPTIONS OF lightning fit]
    chrt -f 10 python benchmarks/one_step.py TEACHER.ckpt TEST --student STUDENT.ckpt ...

A student of the teacher's run of DDIM is trained on photographs, or read. Both enlarge the same test images: pairs in
`hr` and `lr` below TEST, or photographs of it that are shrunk with MATLAB's bicubic kernel. The teacher also runs its
own sampler, and takes a single step without distillation. Scores are means over the images, PSNR on Y without a border.
Times are medians of the wall time of the whole `super_resolve`, one image at a time; all take turns in each round,
after one that does not count. Writes a page and the numbers.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import cast

import torch
from sparse_yoda import machine
from torch import Tensor

from datamodules.batch import Batch, make_batch, to_pixels
from datamodules.degradations.bicubic import Bicubic
from datamodules.degradations.levels import to_uint8
from datamodules.images import decode, find_images
from datamodules.plain_folder import plain_folder
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import data_config, read_checkpoint
from lightning_modules.config import load_method
from lightning_modules.diffusion.samplers import DDIM, Sampler
from lightning_modules.distill import Distill
from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.metrics.pixels import crop_border
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.running.experiment import run
from lightning_modules.super_resolver import SuperResolver

CONFIG = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Row:
    """One image, enlarged in one way."""

    image: str
    way: str
    evaluations: int
    seconds: float
    psnr: float
    lpips: float


def image(path: Path) -> Tensor:
    """An image file, `[1,3,H,W]` in [0, 1]."""
    return torch.from_numpy(decode(path, path.name).copy()).permute(2, 0, 1)[None] / 255


def tests(folder: Path, scale: int, kernel: str, limit: int, crop: int) -> Iterator[Batch]:
    """The test images one by one, with `hr`; of each at most the centre of `crop` pixels a side."""
    paired = plain_folder(folder, paired=True)
    files = [(path, None) for path in find_images(folder)] if paired is None else zip(paired.hr, paired.lr, strict=True)
    for path, lr_path in list(files)[:limit]:
        hr = image(path)
        sides = [min(side, crop) // scale * scale for side in hr.shape[-2:]]
        top, left = ((have - want) // 2 // scale * scale for have, want in zip(hr.shape[-2:], sides, strict=True))
        hr = hr[..., top : top + sides[0], left : left + sides[1]]
        if lr_path is None:
            lr = to_uint8(Bicubic(scale).apply(hr, [])).float() / 255
        else:
            rows, columns = ((at // scale, (at + side) // scale) for at, side in zip((top, left), sides, strict=True))
            lr = image(lr_path)[..., slice(*rows), slice(*columns)]
        batch = make_batch(lr, [path.stem], scale=scale, kernel=kernel)  # type: ignore[arg-type]
        yield cast(Batch, {**batch, "hr": hr * 2 - 1})


class Ways:
    """The ways in which an image is enlarged, by name."""

    def __init__(self, teacher: DiffusionModule, student: Distill, sampler: Sampler) -> None:
        self.calls = 0
        self.ways: dict[str, tuple[SuperResolver, Sampler | None]] = {
            f"teacher, {sampler.name(teacher.process)}": (teacher, sampler),
            "student": (student, None),
            "teacher, one step": (teacher, DDIM(1)),
        }
        if teacher.protocol() != sampler.name(teacher.process):
            self.ways[f"teacher, its own {teacher.protocol()}"] = (teacher, None)
        for network in (teacher.network, student.student.network):
            network.register_forward_pre_hook(self._called)

    def _called(self, network: torch.nn.Module, inputs: object) -> None:
        self.calls += 1

    def enlarge(self, way: str, batch: Batch, precision: str) -> tuple[Tensor, float, int]:
        """The image in [-1, 1], the seconds, and the calls of the network."""
        method, sampler = self.ways[way]
        device = method.device.type
        self.calls = 0
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            began = perf_counter()
            sr = method.super_resolve(batch, sampler).cpu()  # waits for the device
        return sr, perf_counter() - began, self.calls


def rows(ways: Ways, batches: list[Batch], scale: int, options: argparse.Namespace) -> Iterator[Row]:
    """Every test image in every way, and as bicubic made it."""
    psnr, lpips = PSNR("y"), None
    if options.lpips:
        lpips = LPIPS(weights=options.lpips)
        lpips.load()

    def scores(sr: Tensor, batch: Batch) -> tuple[float, float]:
        one, other = (to_pixels(each, batch["key"]).float() / 255 for each in (sr, batch["hr"]))
        inside = crop_border(one, scale), crop_border(other, scale)
        return float(psnr(*inside)), float("nan") if lpips is None else float(lpips(one, other))

    for batch in batches:
        shown = cast(Batch, {key: value for key, value in batch.items() if key != "hr"})
        for key in ("lr", "up"):
            shown[key] = shown[key].to(options.device)  # type: ignore[literal-required]
        seconds: dict[str, list[float]] = {way: [] for way in ways.ways}
        results: dict[str, tuple[Tensor, int]] = {}
        for round_ in range(options.rounds + 1):
            for way in ways.ways:
                sr, spent, calls = ways.enlarge(way, shown, options.precision)
                results[way] = sr, calls
                seconds[way] += [spent] if round_ else []
        key = batch["key"][0]
        yield Row(key, "enlarged", 0, 0.0, *scores(batch["up"], batch))
        for way, (sr, calls) in results.items():
            yield Row(key, way, calls, statistics.median(seconds[way]), *scores(sr, batch))
        print(f"{key}: done", flush=True)


def table(found: list[Row]) -> str:
    """Means by way, and the time as a share of the first teacher's."""
    ways = list(dict.fromkeys(row.way for row in found))
    means = {way: [row for row in found if row.way == way] for way in ways}

    def mean(way: str, name: str) -> float:
        return statistics.fmean(getattr(row, name) for row in means[way])

    reference = next(way for way in ways if way.startswith("teacher"))
    lines = ["| | evaluations | PSNR-Y | LPIPS | above the teacher | s an image | over the teacher |", "|---" * 7 + "|"]
    for way in ways:
        ratio = mean(way, "seconds") / mean(reference, "seconds")
        timed = f"{mean(way, 'seconds'):.3f} | {ratio:.3f}" if way != "enlarged" else "- | -"
        lpips = mean(way, "lpips")
        compared = "- | -" if isnan(lpips) else f"{lpips:.4f} | {lpips - mean(reference, 'lpips'):+.4f}"
        lines.append(f"| {way} | {mean(way, 'evaluations'):.0f} | {mean(way, 'psnr'):.3f} | {compared} | {timed} |")
    return "\n".join(lines)


def trained(options: argparse.Namespace, data: dict[str, object], extra: list[str]) -> Path:
    """The checkpoint of a student that is trained now."""
    if options.train is None or (options.minutes is None) == (options.updates is None):
        raise SystemExit("give --student, or --train and one of --minutes and --updates")
    length = ["--trainer.max_steps", str(options.updates)]
    if options.minutes is not None:
        hours, seconds = divmod(int(timedelta(minutes=options.minutes).total_seconds()), 3600)
        length = ["--trainer.max_time", f"00:{hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}"]

    given = {
        "model.init_args.teacher": options.teacher,
        "model.init_args.teacher_sampler.init_args.steps": options.steps,
        "data.init_args.train": options.train,
        "data.init_args.scale": data["scale"],
        "data.init_args.up_kernel": data.get("up_kernel", "matlab"),
        "trainer.logger.init_args.save_dir": options.runs,
        "trainer.accelerator": "cpu" if options.device == "cpu" else "gpu",
        "trainer.precision": "bf16-mixed" if options.precision == "bf16" else "32-true",
    }
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    run(["fit", "--config", str(CONFIG), *flags, *length, *extra])
    return Path(options.runs) / CONFIG.stem / "last" / "checkpoints" / "last.ckpt"


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("test", type=Path)
    parser.add_argument("--student", help="a checkpoint, which is not trained again")
    parser.add_argument("--train", help="folder of photographs")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--updates", type=int, help="optimizer steps")
    parser.add_argument("--runs", default="runs", help="folder of training runs")
    parser.add_argument("--steps", type=int, default=15, help="of the teacher's DDIM")
    parser.add_argument("--number", type=int, default=100, help="test images at most")
    parser.add_argument("--crop", type=int, default=4096, help="centre of the test images, pixels a side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lpips", help="file of AlexNet's weights; left out without it")
    parser.add_argument("--name", default="one_step", help="of the files that are written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options, extra = parser.parse_known_args()

    data = data_config(read_checkpoint(options.teacher, weights=False))
    path = Path(options.student) if options.student else trained(options, data, extra)
    teacher, student = load_method(options.teacher, options.device), load_method(path, options.device)
    if not isinstance(teacher, DiffusionModule) or not isinstance(student, Distill):
        raise SystemExit(f"{options.teacher} must hold a diffusion method, and {path} a student")

    scale = int(data["scale"])
    batches = list(tests(options.test, scale, data.get("up_kernel", "matlab"), options.number, options.crop))
    found = list(rows(Ways(teacher, student, DDIM(options.steps)), batches, scale, options))
    updates = read_checkpoint(path, weights=False).get("global_step", "unknown")
    sides = sorted({f"{batch['hr'].shape[-1]}x{batch['hr'].shape[-2]}" for batch in batches})
    setting = (
        f"{type(teacher).__name__} x{scale} ({type(teacher.network).__name__}), {student.protocol()}, {updates} "
        f"updates; {len(batches)} images of {', '.join(sides[:4])}{', ...' if len(sides) > 4 else ''}, "
        f"{options.precision}, {options.rounds} rounds; {machine(options.device)}."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    about = (__doc__ or "").split("\n\n")[2].strip()
    page = ["# One evaluation against its teacher's run", about, setting, table(found)]
    (options.out / f"{options.name}.md").write_text("\n\n".join(page) + "\n")
    (options.out / f"{options.name}.json").write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
