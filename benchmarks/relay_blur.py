"""The share of Relay Diffusion's blur and block noise in the time of a training step.

    python benchmarks/relay_blur.py [--crop 160] [--batch 2] [--device cuda] [--out benchmarks/results]

For x2, x4 and x8 the model of configs/relay_x*.yaml makes whole training steps (forward, backward, Adam) on random
images, in bfloat16 and channels_last; the blur of the targets and the block noise of the same batch are timed
separately. On a CPU, processor time is measured, on which other processes have little effect; on a GPU, elapsed time
until it has finished.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch.nn.functional import avg_pool2d, interpolate

from datamodules.batch import Batch
from lightning_modules.config import configured_model
from lightning_modules.config_files import CONFIGS
from lightning_modules.diffusion.relay import block_noise
from lightning_modules.relay import Relay


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


def measure(scale: int, given: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds of a training step, of the blur, and of the block noise."""
    device = torch.device(given.device)
    model = cast(Relay, configured_model(CONFIGS / f"relay_x{scale}.yaml")[0]).to(device).train()
    hr = torch.rand(given.batch, 3, given.crop, given.crop, device=device) * 2 - 1
    lr = avg_pool2d(hr, scale)
    batch = Batch(hr=hr, lr=lr, up=interpolate(lr, scale_factor=scale), key=["random"] * given.batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model.training_step(batch, 0)
        cast(dict[str, torch.Tensor], outputs)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    t = model.process.sample_t(given.batch)
    blur = median_seconds(lambda: model.process.mean(x0=hr, anchor=hr, t=t), device, 20 * given.repeats)
    block = median_seconds(lambda: block_noise(torch.randn_like(hr), scale), device, 20 * given.repeats)
    return median_seconds(step, device, given.repeats), blur, block


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()

    warnings.filterwarnings("ignore")
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    lines = [
        "| scale | training step, ms | blur, ms | block noise, ms | blur of the step | both of the step |",
        "|---|---|---|---|---|---|",
    ]

    for scale in (2, 4, 8):
        step, blur, block = measure(scale, given)
        shares = f"{blur / step:.2%} | {(blur + block) / step:.2%}"
        lines.append(f"| x{scale} | {step * 1e3:.0f} | {blur * 1e3:.2f} | {block * 1e3:.2f} | {shares} |")
    print("\n".join(lines))

    given.out.mkdir(parents=True, exist_ok=True)
    heading = (
        f"# The blur in a training step\n\n`python benchmarks/relay_blur.py`; {where}, torch {torch.__version__}, "
    )
    setting = (
        f"{given.batch} images of {given.crop}x{given.crop}, bfloat16, the network of configs/method/relay.yaml.\n\n"
    )
    (given.out / "relay_blur.md").write_text(heading + setting + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
