"""Overhead of the samplers: the time of a sampling run beyond its network evaluations.

    python benchmarks/solver_overhead.py [--size 256] [--batch 1] [--device cuda] [--out benchmarks/results]

The network is that of configs/method/dossr_pixel.yaml with its initial weights. A run of each solver is timed with a
denoiser that does nothing, and evaluations of the network are timed alone; the overhead is the ratio. On a GPU this is
an upper bound, because the GPU computes while the next operations are launched. On a CPU, processor time is measured,
on which other processes have little effect; on a GPU, elapsed time until it has finished, with the network in bfloat16.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.parameterization import Clean
from lightning_modules.diffusion.samplers import Ancestral, Sampler
from lightning_modules.diffusion.schedules import ScaledLinear
from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.networks.unet_sr3 import SR3UNet

SAMPLERS: list[Sampler] = [Ancestral(5), *(DoSMultistep(5, order) for order in (1, 2, 3)), DoSMultistep(50, 1)]


class Free(Denoiser):
    """A denoiser that costs nothing: it takes the anchor for the clean state."""

    def estimate(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.anchor


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call: processor time on a CPU, elapsed time on a GPU; the first call does not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(repeats + 1):
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return statistics.median(times[1:])


@torch.no_grad()
def measure(size: int, batch: int, device: torch.device, repeats: int) -> tuple[float, dict[str, float]]:
    """Seconds of a network evaluation, and of a step without the evaluation, by sampler."""
    unet = SR3UNet(channel_mults=(1, 2, 3, 4), attn_res=(), res_blocks=1, norm_groups=16, conditioning="index")
    unet = unet.to(device, memory_format=torch.channels_last).eval()
    process = DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500)
    anchor = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    label = torch.ones(batch, device=device)

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return anchor - unet(x, label, anchor).float()

    network = median_seconds(lambda: evaluate(anchor, label), device, repeats)
    free = Free(nn.Identity(), process, Clean("time"), anchor)
    solvers = {
        sampler.name(process): median_seconds(partial(sampler, free), device, 10 * repeats) / sampler.steps
        for sampler in SAMPLERS
    }
    return network, solvers


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()

    device = torch.device(given.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"

    network, solvers = measure(given.size, given.batch, device, given.repeats)
    lines = ["| sampler | one evaluation, ms | one step beside it, ms | overhead |", "|---|---|---|---|"]
    for name, solver in solvers.items():
        lines.append(f"| {name} | {network * 1e3:.1f} | {solver * 1e3:.2f} | {solver / network:.2%} |")
    print("\n".join(lines))

    given.out.mkdir(parents=True, exist_ok=True)
    about = f"{given.batch} x {given.size} x {given.size}, {where}, torch {torch.__version__}, {given.repeats} repeats"
    page = ["# Overhead of the solvers", (__doc__ or "").split("\n\n")[2].strip(), about, "\n".join(lines)]
    (given.out / f"solver_overhead_{device.type}.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
