"""Speed of SR3's training step and sampling against the widely used public code, on this machine's CPU.

    git clone https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement checkout
    python benchmarks/sr3_speed.py checkout

The public code runs as it ships: its own trainer's step (`optimize_parameters`), float32, contiguous. Ours runs in
bfloat16 autocast and channels last, with the fused Adam of the config. The model is the published one for faces 16 ->
128 with 97.8 million parameters, in batches of 4; the images are noise, on which the time does not depend. The two take
turns.
"""

import argparse
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from srdiff_speed import Run, alternate, matrix_speed, operations, own_sampling, processor, table
from torch.nn.functional import interpolate

from datamodules.batch import Batch
from lightning_modules.diffusion.parameterization import Epsilon
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Linear
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.published.sr3 import adapt
from lightning_modules.sr3 import SR3

IMAGES, LOW, HIGH, SAMPLING_STEPS = 4, 16, 128, 5
SCHEDULE = {"schedule": "linear", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 1e-2}


def noise_batch() -> Batch:
    """A batch of random images."""
    lr = torch.rand(IMAGES, 3, LOW, LOW) * 2 - 1
    up = interpolate(lr, size=HIGH, mode="bicubic")
    return Batch(hr=torch.rand_like(up) * 2 - 1, lr=lr, up=up, key=[str(index) for index in range(IMAGES)])


def public_trainer(checkout: Path) -> Any:
    """The checkout's own trainer, from its own configuration file, on the CPU."""
    sys.path.insert(0, str(checkout))
    from core.logger import dict_to_nonedict  # type: ignore[import-not-found]
    from model import create_model  # type: ignore[import-not-found]

    text = (checkout / "config/sr_sr3_16_128.json").read_text()
    options = json.loads(re.sub(r"//.*", "", text))
    options.update(gpu_ids=None, distributed=False)
    return create_model(dict_to_nonedict(options))


def public_training(trainer: Any, batch: Batch) -> Run:
    """One training step of the public code."""

    def step() -> None:
        trainer.set_new_noise_schedule(SCHEDULE, schedule_phase="train")
        trainer.netG.train()
        trainer.feed_data({"HR": batch["hr"], "SR": batch["up"]})
        trainer.optimize_parameters()

    return step


def public_sampling(trainer: Any, batch: Batch) -> Run:
    """One sampling run of the public code."""

    def sample() -> None:
        trainer.set_new_noise_schedule({**SCHEDULE, "n_timestep": SAMPLING_STEPS}, schedule_phase="val")
        trainer.feed_data({"SR": batch["up"]})
        trainer.test()

    return sample


def own_model(state: dict[str, torch.Tensor]) -> SR3:
    """Our model in the same size, with the public model's weights."""
    model = SR3(
        network=SR3UNet(dropout=0.2, orthogonal_init=False),
        process=VP(Linear(2000, 1e-6, 1e-2), continuous=True),
        parameterization=Epsilon("level"),
        space=Pixels(),
        sampler=Ancestral(SAMPLING_STEPS),
        norm="l1",
    )
    model.load_state_dict(adapt(model, state))
    return model


def own_training(model: SR3, batch: Batch, bfloat16: bool) -> Run:
    """One training step of ours."""
    optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model.training_step(batch, 0)["loss"]  # type: ignore[index, call-overload]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def own_sampling_of(model: SR3, batch: Batch, bfloat16: bool) -> Run:
    """One sampling run of ours."""
    sample = own_sampling(model, batch, bfloat16)  # type: ignore[arg-type]

    def evaluating() -> object:
        model.eval()
        return sample()

    return evaluating


def measured(batch: Batch, arguments: argparse.Namespace, speed: float) -> list[str]:
    """The tables of training and sampling; the rates of all rows are for the operations of the public code."""
    trainer = public_trainer(arguments.checkout)
    trainer.set_new_noise_schedule(SCHEDULE, schedule_phase="train")
    own = own_model(trainer.netG.state_dict())

    training = {
        "public": public_training(trainer, batch),
        "ours, float32": own_training(own, batch, bfloat16=False),
        "ours, bfloat16": own_training(own, batch, bfloat16=True),
    }
    sampling = {
        "public": public_sampling(trainer, batch),
        "ours, float32": own_sampling_of(own, batch, bfloat16=False),
        "ours, bfloat16": own_sampling_of(own, batch, bfloat16=True),
    }

    lines = []
    for title, runs in (("Training step", training), (f"Sampling, {SAMPLING_STEPS} steps", sampling)):
        work = dict.fromkeys(runs, operations(runs["public"]))
        lines += table(f"{title}, {IMAGES} images of {HIGH}x{HIGH}", alternate(runs, arguments.rounds), work, speed)
    return lines


def report(arguments: argparse.Namespace) -> str:
    """The page in Markdown."""
    torch.manual_seed(0)
    speeds = {name: matrix_speed(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    rates = " and ".join(f"{speed:.0f} 10^9/s in {name}" for name, speed in speeds.items())
    machine = f"{processor()}; torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds"
    lines = ["# SR3 against its public code", "", f"{machine}. Its matrix product reaches {rates}.", ""]
    return "\n".join([*lines, *measured(noise_batch(), arguments, speeds["bfloat16"])])


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sr3_speed.md")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", ".*self.trainer.*")
    text = report(arguments)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
