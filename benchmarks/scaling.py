"""What changes at 8, 64 and 512 GPUs: arithmetic from the configs, and a simulation of the training order.

    python -m benchmarks.scaling [--out benchmarks/results]

Parameters are counted on the meta device. The order, its memory and its start are measured: ten million samples in ten
thousand shards, as 512 processes with 8 workers each read them. What is assumed stands in the result.
"""

import argparse
import hashlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from datamodules.stream.crops import RandomCrop
from datamodules.stream.shards import Entry, TarIndex, open_split
from datamodules.stream.sources import Record, Sample, Source
from datamodules.stream.streams import EpochOrder, Rank, TrainStream
from lightning_modules.config import CONFIGS, build_part, layers, read_yaml

GPUS = (8, 64, 512)
NODE = 8  # GPUs
WITHIN, BETWEEN = 150e9, 25e9  # bytes a second that a GPU sends in an all-reduce: within a node, and over the network
DISK = 1e9  # bytes a second of the file system that checkpoints are written to
IMAGE = 300e3  # bytes of a packed sub-image of 480 x 480 as PNG
VALIDATION = 100  # images, as DIV2K has
SAMPLES, SHARDS, PROCESSES, WORKERS, WINDOW, BATCH = 10_000_000, 10_000, 512, 8, 10_000, 16
FLOAT = 4  # bytes
VQ_F4 = 55_322_782  # parameters of ResShift's autoencoder


@dataclass(frozen=True)
class Method:
    """A method as its config describes it.

    Attributes:
        name: Of the config.
        trained: Parameters that are trained.
        frozen: Parameters that are not.
        averaged: Whether an EMA is kept.
        batch: Images in a step of one process.
    """

    name: str
    trained: int
    frozen: int
    averaged: bool
    batch: int

    @property
    def checkpoint(self) -> float:
        """Bytes: weights, two moments of Adam, and the average; frozen parts stay out."""
        return self.trained * FLOAT * (4 if self.averaged else 3)

    def reduced(self, gpus: int) -> float:
        """Bytes that each GPU sends in a step for gradients in float32, by a ring."""
        return 2 * (gpus - 1) / gpus * self.trained * FLOAT

    def seconds(self, gpus: int) -> float:
        """How long that takes where nothing else is done; DDP does it during the backward pass."""
        return self.reduced(gpus) / (WITHIN if gpus <= NODE else BETWEEN)


def numbers(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def value(config: str, key: str) -> Any:
    """The value of a key of an experiment, with all that it refers to."""
    merged = OmegaConf.merge(*(OmegaConf.create(read_yaml(layer)) for layer in layers(CONFIGS / f"{config}.yaml")))
    found = OmegaConf.select(merged, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def part(config: str, key: str) -> int:
    """Parameters of a part of an experiment, built on the meta device."""
    content = {"model": {"init_args": {key: value(config, f"model.init_args.{key}")}}}
    with torch.device("meta"):
        built, _ = build_part(nn.Module, f"model.init_args.{key}", [content], [])
    return numbers(built)


def stable_diffusion() -> tuple[int, int]:
    """Trained and frozen parameters of DoSSR's Stable Diffusion 2.1, by its published sizes, on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from lightning_modules.networks.sd21 import controlnet_for

    levels = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    sizes = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20)}
    coded = {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4, "layers_per_block": 2}
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            use_linear_projection=True,
            down_block_types=levels[0],
            up_block_types=levels[1],
            **sizes,
        )
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **coded
        )
        trained = numbers(controlnet_for(unet))
    return trained, numbers(unet) + numbers(autoencoder) + part("dossr_sd21", "restorer")


def method(config: str, trained: Sequence[str] = ("network",), frozen: Sequence[str] = ()) -> Method:
    """A method by the parts of its config."""
    averaged = any("callbacks.ema.EMA" in layer.read_text() for layer in layers(CONFIGS / f"{config}.yaml"))
    counts = [sum(part(config, key) for key in keys) for keys in (trained, frozen)]
    return Method(config, counts[0], counts[1], averaged, value(config, "data.init_args.batch_size"))


def methods() -> list[Method]:
    """All methods."""
    trained, frozen = stable_diffusion()
    plain = ("rrdb", "sr3", "sr3_paper_64_512", "resshift_pixel", "dossr_pixel", "edm", "relay_x4", "flow")
    return [
        *(method(config) for config in plain),
        method("srdiff", frozen=["encoder"]),
        replace(method("resshift"), frozen=VQ_F4),
        Method("dossr_sd21", trained, frozen, False, value("dossr_sd21", "data.init_args.batch_size")),
        replace(method("skipdiff_sr3", trained=["policy"]), frozen=part("sr3_cosine_16_128", "network")),
    ]


# The simulation.


class Counted(Source):
    """A set of which only the numbers are known."""

    @property
    def groups(self) -> list[int]:
        """Samples in each shard."""
        return [SAMPLES // SHARDS] * SHARDS

    def record(self, index: int) -> Record:
        """The number as the key."""
        return Record(str(index), b"")

    def describe(self, index: int) -> str:
        """The number."""
        return str(index)

    def sample(self, index: int, paired: bool) -> Sample:
        """A sample of one pixel, whose key is its number."""
        return Sample(str(index), np.zeros((4, 4, 3), dtype=np.uint8))


def memory() -> float:
    """The largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_worker(place: tuple[int, int]) -> tuple[float, float, float, float]:
    """Seconds to the first batch, MB that this took, milliseconds a batch, MB after a tenth of an epoch's batches.

    Args:
        place: The process and the worker in it.
    """
    rank, worker = place
    before = memory()
    began = time.perf_counter()
    stream = TrainStream(
        Counted(), RandomCrop(4, 4, 0), BATCH, Rank(rank, PROCESSES), window=WINDOW, first=worker, seed=0
    )
    batches = iter(stream)
    next(batches)
    first, at_first = time.perf_counter() - began, memory() - before

    began, count = time.perf_counter(), SAMPLES // (PROCESSES * BATCH) // 10
    for _ in islice(batches, count):
        pass
    return first, at_first, (time.perf_counter() - began) / count * 1e3, memory() - before


def every_record_once() -> bool:
    """Whether the steps of all processes in an epoch hold all records, each once."""
    order, seen = EpochOrder(Counted().groups, seed=0, epoch=0, window=WINDOW), np.zeros(SAMPLES, dtype=np.uint8)
    step = PROCESSES * BATCH
    for start in range(0, SAMPLES, step):
        np.add.at(seen, order[start : start + step], 1)
    return bool((seen == 1).all())


def shards_in_a_step() -> float:
    """How many shards the batches of all processes in one step come from, on average over twenty steps."""
    order, step = EpochOrder(Counted().groups, seed=0, epoch=0, window=WINDOW), PROCESSES * BATCH
    starts = range(0, SAMPLES - step, SAMPLES // 20)
    return float(np.mean([len(set((order[start : start + step] // (SAMPLES // SHARDS)).tolist())) for start in starts]))


def sorting_everything() -> tuple[float, float]:
    """Seconds and MB of sorting the keys of all records, for comparison."""
    before, began = memory(), time.perf_counter()
    rng = np.random.default_rng(0)
    order = np.arange(SAMPLES)
    order = order[np.argsort(order + rng.uniform(0, WINDOW, SAMPLES), kind="stable")]
    return time.perf_counter() - began, memory() - before


def opening() -> tuple[float, float]:
    """Seconds and MB of opening a set of that many shards on this machine's disk, whose samples are counted."""
    with tempfile.TemporaryDirectory() as folder:
        each = SAMPLES // SHARDS
        shards = []
        for number in range(SHARDS):
            name = f"set-train-{number:06d}.tar"
            Path(folder, name).touch()
            digest = hashlib.sha256(name.encode()).hexdigest()
            shards.append({"file": name, "samples": each, "bytes": 0, "sha256": digest})
        content = {"splits": [{"name": "set", "split": "train", "shards": shards}]}
        Path(folder, "dataset.json").write_text(json.dumps(content))
        before, began = memory(), time.perf_counter()
        opened = open_split(folder, "set-train")
        assert len(opened) == SAMPLES
        return time.perf_counter() - began, memory() - before


def index_of_samples(count: int) -> float:
    """MB of the places of that many samples in shards."""
    before = memory()
    kept = TarIndex(Path(), [Entry(f"{n:08d}", {"hr": (n * 300_000, 299_000 + n)}) for n in range(count)])
    assert len(kept.entries) == count
    return memory() - before


def alone(function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of its own, so that its memory is its own."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


# The page.


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def size(value: float) -> str:
    """Bytes for people."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def of_methods(found: Sequence[Method]) -> str:
    """What follows from the number of parameters."""
    rows = []
    for each in found:
        row = [each.name, f"{each.trained / 1e6:.1f}", f"{each.frozen / 1e6:.1f}", str(each.batch)]
        row += [size(each.checkpoint), f"{each.checkpoint / DISK:.1f}"]
        row += [f"{size(each.reduced(gpus))}, {each.seconds(gpus) * 1e3:.0f} ms" for gpus in GPUS]
        rows.append(row)
    head = ["config", "trained, M", "frozen, M", "batch", "checkpoint", "written in, s"]
    return table([*head, *(f"all-reduce, {gpus} GPUs" for gpus in GPUS)], rows)


def of_data(found: Sequence[Method]) -> str:
    """What follows from the number of processes alone, for a batch of 16."""
    rows = []
    for gpus in GPUS:
        nodes, images = gpus // NODE, gpus * BATCH
        rows.append(
            [
                str(gpus),
                str(images),
                str(SAMPLES // images),
                f"{images * IMAGE / 1e9:.2f}",
                f"{size(SAMPLES * IMAGE)} x {nodes}",
                f"{-(-VALIDATION // gpus)}",
                str(max(0, gpus - VALIDATION)),
            ]
        )
    head = ["GPUs", "images a step", "steps an epoch", "GB read a step", "fetched from URLs in all"]
    return table([*head, "validation images a process", "processes without one"], rows)


def page() -> str:
    """The whole result."""
    found = methods()
    places = [(0, 0), (0, 7), (255, 3), (511, 7)]
    workers = [alone(one_worker, place) for place in places]
    once, shards = every_record_once(), alone(shards_in_a_step)
    sorted_s, sorted_mb = alone(sorting_everything)
    opened_s, opened_mb = alone(opening)
    index_mb = alone(index_of_samples, 1 << 16)
    measured = table(
        ["process, worker", "first batch after, s", "MB for it", "ms a batch", "MB after a tenth of an epoch"],
        [
            [f"{rank}, {worker}", *(f"{value:.2f}" for value in values)]
            for (rank, worker), values in zip(places, workers, strict=True)
        ],
    )
    node = NODE * WORKERS * (max(values[3] for values in workers) + index_mb)
    return PAGE.format(
        methods=of_methods(found),
        data=of_data(found),
        measured=measured,
        once="each record came once" if once else "RECORDS ARE MISSING",
        shards=f"{shards:.0f}",
        sorted_s=f"{sorted_s:.1f}",
        sorted_mb=f"{sorted_mb:.0f}",
        opened_s=f"{opened_s:.2f}",
        opened_mb=f"{opened_mb:.0f}",
        index_mb=f"{index_mb:.0f}",
        node=f"{node / 1024:.1f}",
        bad=f"{SAMPLES / 1e6:.0f}",
        within=f"{WITHIN / 1e9:.0f}",
        between=f"{BETWEEN / 1e9:.0f}",
        disk=f"{DISK / 1e9:.0f}",
        image=f"{IMAGE / 1e3:.0f}",
        cpus=os.cpu_count(),
        torch=torch.__version__,
    )


PAGE = """# What changes at 8, 64 and 512 GPUs

`python -m benchmarks.scaling`, on {cpus} CPU cores, torch {torch}. Nothing here was measured on that many GPUs: the
first two tables are arithmetic, the last one a simulation on the CPU.

Assumed: 8 GPUs a node; a GPU sends {within} GB/s in an all-reduce within a node and {between} GB/s between nodes;
checkpoints are written at {disk} GB/s; a packed sub-image has {image} kB; {batch} images a process and step in the
second table.

## Each method

{methods}

- **All-reduce**: gradients of trained parameters in float32, 2 (N - 1) / N times their bytes, sent by each GPU in each
  step, and so nearly the same from 8 GPUs on; what grows is the number of stages of the ring. DDP overlaps it with the
  backward pass. Frozen parts reduce nothing. `accumulate_grad_batches: k` divides it by k.
- **Spread weights** (`configs/hardware/fsdp.yaml`): each step sends 3 (N - 1) / N times the bytes of *all* parameters
  that are spread, frozen ones as well, 1.5 times DDP's where all are trained, and keeps 16 / N bytes a trained
  parameter instead of 16. Of these methods dossr_sd21 gains by it; the others fit one GPU. SkipDiff spreads its policy
  alone.
- **Checkpoints** hold weights, two moments of Adam and the average of the trained parameters; process 0 writes them
  while the others wait. Size and time do not depend on N. With spread weights each process collects all tensors first.
- **Batch**: per process. To keep a paper's batch divide by N; where that is below 1, fewer GPUs are enough. A larger
  batch wants its own learning rate: nothing here scales it.

## Data and validation, for ten million samples

{data}

- **Order**: one sequence for all processes, cut into steps; process r takes the r-th part of each. So any number of
  processes sees each sample once an epoch, no process waits for another's shard, and there need not be as many shards
  as processes.
- **Servers**: each node reads from each shard. On a shared file system that is the column "read a step", whatever the
  number of nodes. Behind URLs each node fetches the whole set once to its own disk, as the fourth column says: for many
  nodes copy it to them, or to a shared file system, before.
- **Validation**: each process takes every N-th image. Beyond as many processes as images nothing gets faster, and
  processes without one repeat the first; scores count it once.

## The order of ten million samples in ten thousand shards, 512 processes with 8 workers each

{measured}

Over an epoch, in the steps of all 512 processes, {once}. A step's 8192 images come from {shards} shards.

- **Start**: opening the set took {opened_s} s and {opened_mb} MB, linear in the number of shards (its description is
  read, and each file looked for; on a network file system the looking takes longer), once a process; workers inherit
  it.
- **The order** is computed in parts: time and memory follow the window of the shuffle (10,000) and the number of
  shards. Sorting it as a whole takes {sorted_s} s and {sorted_mb} MB in each worker and epoch. A window of the
  whole set, a uniform shuffle, still does that.
- **Places in shards**: each worker keeps those of about 65,000 samples, {index_mb} MB, whatever the set's size.
- **Linear in the set**: one byte a sample for samples that were found bad, {bad} MB a process, shared by its workers.
- So the workers of a node keep up to {node} GB beside Python and torch.
"""
PAGE = PAGE.replace("{batch}", str(BATCH))


def main() -> None:
    """Writes `scaling.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    target = parser.parse_args().out / "scaling.md"
    target.write_text(page())
    print(target.read_text())


if __name__ == "__main__":
    main()
