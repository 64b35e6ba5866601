"""Time against the number of network evaluations when steps are skipped, and the cost of self-attention guidance.

    python benchmarks/skip_speed.py [--size 64] [--inner 32] [--device cuda] [--out benchmarks/results]

SR3 with the published architecture for faces 16 -> 128 (but of width `--inner`, where the published one has 64) and
initial weights, batch of 8. At each fine step a random share of the batch runs. SkipDiff's published policy (14.2 M
parameters) is evaluated on every state, but its actions are replaced, so that the shares are those in the table. The
rows take turns. On a CPU, processor time is measured, on which other processes have little effect; on a GPU, elapsed
time until it has finished.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.diffusion.guidance import SelfAttentionGuidance
from lightning_modules.diffusion.parameterization import Epsilon
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.space import Pixels
from lightning_modules.diffusion.vp import VP
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.sampler import Decider, Pattern, PolicyDecider, SkipSampler
from lightning_modules.sr3 import SR3

IMAGES, DECISIONS = 8, 10
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
GUIDED_STEPS = 5


class ReplacedActions(PolicyDecider):
    """Evaluates the policy and replaces its actions by `runs`, boolean `[K,B]`."""

    def __init__(self, policy: SkipPolicy, runs: Tensor) -> None:
        super().__init__(policy, greedy=True)
        self.runs = runs

    def act(self, decision: int, logits: Tensor) -> Tensor:
        """The action of `runs`, int64 `[B]`; the policy's own action is computed, for its time, and dropped."""
        super().act(decision, logits)
        return (~self.runs[decision]).long()


def model_of(inner: int, size: int, device: torch.device) -> SR3:
    """SR3 with initial weights."""
    torch.manual_seed(0)
    model = SR3(
        network=SR3UNet(inner_channel=inner, image_size=size, norm_groups=min(inner, 32)),
        process=VP(Cosine(100), continuous=True),
        parameterization=Epsilon("level"),
        space=Pixels(),
        sampler=Ancestral(GUIDED_STEPS),
    )
    return model.eval().to(device)


def alternate(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each run; the runs take turns, and the first round does not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            measured[name].append(clock() - start)
    return {name: statistics.median(times[1:]) for name, times in measured.items()}


def skipping(model: SR3, batch: Batch, rounds: int) -> list[str]:
    """The table: evaluations and seconds by share of steps, also relative to running all steps without a policy."""
    policy = SkipPolicy(hidden=None, norm="batch", decisions=None).eval().to(model.device)
    deciders: dict[str, Decider] = {"every step, no policy": Pattern([True] * DECISIONS)}
    for share in SHARES:
        runs = torch.rand(DECISIONS, IMAGES, device=model.device) < share
        deciders[f"policy, {share:.0%} of the steps"] = ReplacedActions(policy, runs)

    def run(decider: Decider) -> Callable[[], object]:
        return lambda: model.super_resolve(batch, SkipSampler(decider))

    seconds = alternate({name: run(decider) for name, decider in deciders.items()}, rounds, model.device)
    counts = {name: int(SkipSampler(decider).evaluations(decider).sum()) for name, decider in deciders.items()}

    first = next(iter(deciders))
    lines = ["| | evaluations | s | evaluations, relative | time, relative | time over evaluations |"]
    lines.append("|---|---|---|---|---|---|")
    for name, spent in seconds.items():
        work, elapsed = counts[name] / counts[first], spent / seconds[first]
        lines.append(f"| {name} | {counts[name]} | {spent:.2f} | {work:.3f} | {elapsed:.3f} | {elapsed / work:.3f} |")
    return lines


def guiding(model: SR3, batch: Batch, rounds: int) -> str:
    """A sentence on the cost of self-attention guidance."""
    guidance = SelfAttentionGuidance(scale=0.25, kernel=31, sigma=3.0)

    def run(guided: bool) -> Callable[[], object]:
        def sample() -> None:
            model.guidance = [guidance] if guided else []
            model.super_resolve(batch)

        return sample

    seconds = alternate({"unguided": run(False), "guided": run(True)}, rounds, model.device)
    ratio = seconds["guided"] / seconds["unguided"]
    return (
        f"Self-attention guidance, {GUIDED_STEPS} ancestral steps: {seconds['guided']:.2f} s against "
        f"{seconds['unguided']:.2f} s without, {ratio:.3f} times."
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--inner", type=int, default=32, help="width of the U-Net's first level; published 64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    model = model_of(arguments.inner, arguments.size, device)
    up = torch.rand(IMAGES, 3, arguments.size, arguments.size, device=device) * 2 - 1
    batch = Batch(lr=up, up=up, key=[str(i) for i in range(IMAGES)])

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lines = [
        "# Time against evaluations",
        "",
        str(__doc__).strip().split("\n\n")[-1],
        "",
        f"{IMAGES} x {arguments.size} x {arguments.size}, U-Net of {parameters:.1f} M parameters, {name}, torch "
        f"{torch.__version__}, {arguments.rounds} rounds.",
        "",
        *skipping(model, batch, arguments.rounds),
        "",
        guiding(model, batch, arguments.rounds),
    ]

    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"skip_speed_{device.type}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
