"""DoSSR on Stable Diffusion 2.1: time and peak memory of enlarging.

Random weights of the real size are enough: `python -m benchmarks.sd21_speed --random weights/random_sd21` writes them
once (5 GB). Then `python -m benchmarks.sd21_speed --weights weights/random_sd21 --steps 1 5 --batch 1 8 --side 128`
measures.
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from datamodules.batch import Batch
from lightning_modules.diffusion.dos_solvers import DoSMultistep
from lightning_modules.diffusion.parameterization import ShiftedEpsilon
from lightning_modules.diffusion.schedules import ScaledLinear
from lightning_modules.diffusion.space import Latent
from lightning_modules.diffusion.vp import DomainShift
from lightning_modules.dossr import DoSSRStableDiffusion
from lightning_modules.networks.autoencoder import KLAutoencoder
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.sd21 import ControlledUNet
from tests.lightning_modules.networks.test_sd21 import TEXT, UNET, VAE
from tests.tiny.stable_diffusion import write_tokenizer


def write_random(folder: Path) -> None:
    """Writes random weights in the layout of Stable Diffusion's folders.

    All parts have their real size except the vocabulary, which is not part of the measurement.
    """
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE, layers_per_block=2).save_pretrained(folder / "vae")
    tokens = write_tokenizer(folder / "tokenizer")
    CLIPTextModel(CLIPTextConfig(**{**TEXT, "vocab_size": tokens})).save_pretrained(folder / "text_encoder")
    torch.save(RRDBNet(4, 64, 23, 32).state_dict(), folder / "restorer.pth")


def built(weights: Path, restorer: Path, tile: int | None) -> DoSSRStableDiffusion:
    """The published model, evaluated on tiles of `tile` pixels; None for whole images."""
    return DoSSRStableDiffusion(
        restorer=RRDBNet(4, 64, 23, 32),
        restorer_weights=str(restorer),
        network=ControlledUNet(str(weights)),
        process=DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500),
        parameterization=ShiftedEpsilon(),
        space=Latent(KLAutoencoder(str(weights), tile=tile)),
        sampler=DoSMultistep(5, final="reference"),
        norm="l1",
        tile=tile,
        overlap=256,
    ).eval()


def measure(model: DoSSRStableDiffusion, batch: Batch, steps: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a batch, and peak GPU memory in GiB (NaN on a CPU)."""
    seconds, gpu = [], model.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()

    for repeat in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16):
            model.super_resolve(batch, DoSMultistep(steps, final="reference"))
        if gpu:
            torch.cuda.synchronize()
        seconds += [time.perf_counter() - start] if repeat else []

    memory = torch.cuda.max_memory_allocated() / 2**30 if gpu else float("nan")
    return sorted(seconds)[len(seconds) // 2], memory


def main() -> None:
    """Writes random weights, or measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=Path, help="write random weights of the real size to this folder, and stop")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--restorer", type=Path, help="RealESRNet's file; by default WEIGHTS/restorer.pth")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--side", type=int, default=128, help="of the low-resolution image")
    parser.add_argument("--tile", type=int, help="in pixels, 512 for large images")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.random:
        return write_random(arguments.random)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    restorer = arguments.restorer or arguments.weights / "restorer.pth"
    model = built(arguments.weights, restorer, arguments.tile).to(device)

    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}, bf16 autocast")
    print(f"| LR side {arguments.side} | steps | seconds a batch | GiB |\n|---|---|---|---|")
    for count in arguments.batch:
        lr = torch.rand(count, 3, arguments.side, arguments.side, device=device) * 2 - 1
        up = torch.nn.functional.interpolate(lr, scale_factor=4)
        batch = Batch(lr=lr, up=up, key=[str(index) for index in range(count)])
        for steps in arguments.steps:
            seconds, memory = measure(model, batch, steps, arguments.repeats)
            print(f"| batch {count} | {steps} | {seconds:.3f} | {memory:.1f} |")


if __name__ == "__main__":
    main()
