"""Speed of SRDiff's training step and sampling against the published repository, on this machine's CPU.

    git clone https://github.com/LeiaLi/SRDiff checkout
    python benchmarks/srdiff_speed.py checkout

The published code runs as it ships: float32, contiguous, with the projection of the features at every step, the last
layers of the encoder, and a reverse step that training computes for its log. Ours runs in bfloat16 autocast and
channels last. Sizes are those of the released DIV2K model; the images are noise, on which the time does not
depend. The two take turns.
"""

import argparse
import platform
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import Batch
from lightning_modules.diffusion.parameterization import Epsilon
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.space import Residual
from lightning_modules.diffusion.vp import VP
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.unet_srdiff import SRDiffUNet
from lightning_modules.srdiff import SRDiff

IMAGES, CROP, SCALE, SAMPLING_STEPS = 4, 160, 4, 10
Run = Callable[[], object]


def noise_batch() -> Batch:
    """A batch of random images."""
    lr = torch.rand(IMAGES, 3, CROP // SCALE, CROP // SCALE) * 2 - 1
    up = interpolate(lr, scale_factor=float(SCALE), mode="bicubic")
    return Batch(hr=torch.rand_like(up) * 2 - 1, lr=lr, up=up, key=[str(index) for index in range(IMAGES)])


def published_model(checkout: Path) -> nn.Module:
    """The released DIV2K model, built by the checkout's own classes and configuration."""
    losses = types.ModuleType("utils.sr_utils")  # imports torchvision and LPIPS, which neither path below calls
    losses.SSIM = losses.PerceptualLoss = lambda **_: nn.Identity()  # type: ignore[attr-defined]
    sys.modules["utils.sr_utils"] = losses
    sys.path.insert(0, str(checkout))
    from utils.hparams import set_hparams  # type: ignore[import-not-found]

    hparams = set_hparams(str(checkout / "configs/diffsr_df2k4x.yaml"), print_hparams=False)
    hparams.update(rrdb_num_feat=32, rrdb_num_block=8)  # of the released weights
    __import__("utils.hparams").hparams.hparams.update(hparams)
    from models.diffsr_modules import RRDBNet as PublishedRRDB  # type: ignore[import-not-found]
    from models.diffsr_modules import Unet
    from models.diffusion import GaussianDiffusion  # type: ignore[import-not-found]

    unet = Unet(hparams["hidden_size"], out_dim=3, cond_dim=32, dim_mults=[1, 2, 3, 4])
    model: nn.Module = GaussianDiffusion(
        unet, PublishedRRDB(3, 3, 32, 8, 16), hparams["timesteps"], hparams["loss_type"]
    )
    return model


def published_training(model: nn.Module, batch: Batch) -> Run:
    """One training step of the published code."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

    def step() -> None:
        model.train()
        losses, _, _ = model(batch["hr"], batch["lr"], batch["up"])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def published_sampling(model: nn.Module, batch: Batch) -> Run:
    """One sampling run of the published code."""

    def sample() -> None:
        model.eval()
        model.sample_tqdm, trained = False, model.num_timesteps  # type: ignore[assignment]
        model.num_timesteps = SAMPLING_STEPS  # type: ignore[assignment]
        model.sample(batch["lr"], batch["up"], batch["hr"].shape)  # type: ignore[operator]
        model.num_timesteps = trained

    return sample


def own_model() -> SRDiff:
    """Our model in the same size."""
    return SRDiff(
        encoder=RRDBNet(SCALE),
        network=SRDiffUNet(SCALE),
        process=VP(Cosine(100)),
        parameterization=Epsilon("index"),
        space=Residual(2.0),
        sampler=Ancestral(SAMPLING_STEPS),
        norm="l1",
    )


def own_training(model: SRDiff, batch: Batch, bfloat16: bool) -> Run:
    """One training step of ours."""
    optimizer = torch.optim.Adam(model.network.parameters(), lr=2e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model.training_step(batch, 0)["loss"]  # type: ignore[index, call-overload]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def own_sampling(model: SRDiff, batch: Batch, bfloat16: bool) -> Run:
    """One sampling run of ours."""

    def sample() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model.super_resolve(batch)

    return sample


def seconds(run: Run) -> float:
    """Elapsed seconds of a run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round; the runs take turns, and the first round does not count."""
    for run in runs.values():
        run()
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            measured[name].append(seconds(run))
    return measured


def operations(run: Run) -> float:
    """Floating-point operations of the run's convolutions and matrix products, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def matrix_speed(dtype: torch.dtype, size: int = 2048) -> float:
    """Speed of a matrix product on this machine, in 10^9 operations per second."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    left @ right
    return 2 * size**3 / min(seconds(lambda: left @ right) for _ in range(7)) / 1e9


def processor() -> str:
    """Name, number of cores and bfloat16 instructions of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if unit in info.read_text()]
    return f"{names[0]}, {len(names)} cores, {' and '.join(units) or 'no bfloat16 instructions'}, {platform.system()}"


def table(title: str, measured: dict[str, list[float]], work: dict[str, float], speed: float) -> list[str]:
    """A table in Markdown with medians, ranges, ratios to the first row and operations per second.

    A sentence below it gives the ratio that would be reached at `speed` 10^9 operations per second throughout.
    """
    lines = [
        f"## {title}",
        "",
        "| | median s | range | times faster, median of rounds | 10^9 operations | per second |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")

    published = next(iter(measured.values()))
    for name, times in measured.items():
        ratio = statistics.median(first / own for first, own in zip(published, times, strict=True))
        middle = statistics.median(times)
        row = f"{middle:.3f} | {min(times):.3f} to {max(times):.3f} | {ratio:.2f}"
        lines.append(f"| {name} | {row} | {work[name]:.0f} | {work[name] / middle:.0f} |")

    least = list(work.values())[-1] / speed
    limit = f"{statistics.median(published) / least:.2f} times faster than published"
    lines += [
        "",
        f"At the bfloat16 speed of the matrix product from end to end, ours would take {least:.3f} s: {limit}.",
    ]
    return [*lines, ""]


def header(arguments: argparse.Namespace, speeds: dict[str, float]) -> list[str]:
    """The beginning of the page: the command and the machine."""
    reached = " and ".join(f"{speed:.0f} 10^9/s in {name}" for name, speed in speeds.items())
    machine = f"{processor()}; torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds."
    command = f"`python benchmarks/srdiff_speed.py {arguments.checkout.name} --rounds {arguments.rounds}`"
    return [
        "# SRDiff against its published code",
        "",
        command,
        "",
        f"{machine} Its matrix product reaches {reached}.",
        "",
    ]


def report(arguments: argparse.Namespace) -> str:
    """The page in Markdown."""
    torch.manual_seed(0)
    batch, published, own = noise_batch(), published_model(arguments.checkout), own_model()

    training = {
        "published": published_training(published, batch),
        "ours, float32": own_training(own, batch, bfloat16=False),
        "ours, bfloat16": own_training(own, batch, bfloat16=True),
    }
    sampling = {
        "published": published_sampling(published, batch),
        "ours, float32": own_sampling(own, batch, bfloat16=False),
        "ours, bfloat16": own_sampling(own, batch, bfloat16=True),
    }

    speeds = {name: matrix_speed(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    lines = header(arguments, speeds)
    for what, runs in (("Training step", training), (f"Sampling, {SAMPLING_STEPS} steps", sampling)):
        work = {name: operations(run) for name, run in runs.items()}
        title = f"{what}, {IMAGES} images of {CROP}x{CROP}"
        lines += table(title, alternate(runs, arguments.rounds), work, speeds["bfloat16"])
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of github.com/LeiaLi/SRDiff")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "srdiff_speed.md")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", ".*self.trainer.*")
    text = report(arguments)
    arguments.out.write_text(text.rstrip() + "\n")
    print(text)


if __name__ == "__main__":
    main()
