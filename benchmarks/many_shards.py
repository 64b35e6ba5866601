"""20,000 images in 200 shards: how soon training starts, and whether its memory stays the same.

    python -m benchmarks.many_shards [--steps 2000] [--workers 2] [--out benchmarks/results]

Images of noise are packed, 48 x 48 pixels and 140 MB in all, and a tiny SR3 is trained on them by `lightning fit`. The
clock starts with the process and stops when its first step ends; memory is that of the process and of each data worker,
every 100 steps.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from datamodules.prepare.pack import pack_folder
from lightning_modules.config import CONFIGS

IMAGES, EACH, SIDE = 20_000, 100, 48


class Watch(Callback):
    """Writes when the first step ended, and memory every `every` steps, to `path`."""

    def __init__(self, path: str, every: int = 100) -> None:
        self.path, self.every = Path(path), every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds a line."""
        if trainer.global_step == 1 or trainer.global_step % self.every == 0:
            held = [memory(process) for process in (os.getpid(), *children())]
            with self.path.open("a") as file:
                csv.writer(file).writerow([trainer.global_step, time.time(), time.process_time(), *held])


def children() -> list[int]:
    """The data workers of this process."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in listed]


def memory(process: int) -> float:
    """MB that a process shares with no other."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) / 1024


def make(folder: Path) -> Path:
    """The packed images, below `folder`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:05d}.png", compress_level=1)
    pack_folder(str(folder / "images"), str(folder / "packed"), name="noise", per_shard=EACH, workers=2)
    return folder / "packed"


def config(folder: Path, packed: Path, steps: int, workers: int) -> Path:
    """A tiny SR3 on the packed images."""
    network = {"inner_channel": 8, "channel_mults": [1, 2], "attn_res": [], "res_blocks": 1, "norm_groups": 4}
    watch = {"class_path": "benchmarks.many_shards.Watch", "init_args": {"path": str(folder / "watched.csv")}}
    trainer = {
        "accelerator": "cpu",
        "max_steps": steps,
        "limit_val_batches": 0,
        "precision": "32-true",
        "callbacks+": [watch],
    }
    data = {"root": str(packed), "train": "noise-train", "crop": 32, "batch_size": 4, "num_workers": workers}
    content = {
        "compose": [str(CONFIGS / "sr3.yaml")],
        "trainer": trainer,
        "data": {"class_path": "datamodules.shard_folder.ShardFolder", "init_args": data},
        "model": {"init_args": {"network": {"init_args": {**network, "image_size": 32}}}},
    }
    path = folder / "many_shards.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def main() -> None:
    """Measures, and writes `many_shards.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diffsr-many-shards-") as name:
        folder = Path(name)
        packed = make(folder)
        shards = json.loads((packed / "dataset.json").read_text())["splits"][0]["shards"]
        path = config(folder, packed, asked.steps, asked.workers)
        environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
        began = time.time()
        command = [str(Path(sys.executable).with_name("lightning")), "fit", "--config", str(path)]
        subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
        with (folder / "watched.csv").open() as file:
            rows = [[float(value) for value in row] for row in csv.reader(file)]
        text = report(rows, began, len(shards), packed, asked)
    asked.out.joinpath("many_shards.md").write_text(text)
    print(text)


def report(rows: list[list[float]], began: float, shards: int, packed: Path, asked: argparse.Namespace) -> str:
    """The page."""
    shown = [row for row in rows if row[0] in (1, 100, 200, 500, 1000, 1500, 2000, asked.steps)]
    lines = "\n".join(
        f"| {row[0]:.0f} | {row[1] - began:.1f} | {row[3]:.0f} | {', '.join(f'{each:.0f}' for each in row[4:])} |"
        for row in shown
    )
    size = sum(path.stat().st_size for path in packed.glob("*.tar")) / 1e6
    return f"""# Training on many shards

`python -m benchmarks.many_shards --steps {asked.steps} --workers {asked.workers}`, {os.cpu_count()} CPU cores that
other work shared (load {os.getloadavg()[2]:.1f} over a quarter of an hour), torch {torch.__version__}, on a CPU.

{IMAGES} images of {SIDE} x {SIDE} pixels in {shards} shards, {size:.0f} MB. Seconds count from the start of the
command, Python's imports included; the first step of a tiny SR3 ended after **{rows[0][1] - began:.1f} s**, for
which the main process computed {rows[0][2]:.1f} s. Memory is what a process shares with no other, MB.

| steps | seconds | main process | data workers |
|---|---|---|---|
{lines}
"""


if __name__ == "__main__":
    main()
