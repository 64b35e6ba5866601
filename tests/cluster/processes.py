"""`python -m tests.cluster.processes [STEPS PROCESSES [EXPERIMENT ...]]`: one process against several, for all methods.

Each experiment trains some steps on one, two and three processes whose batches are together the same six images. Then
the first checkpoint is tested on one, two and three processes. Printed are the relative differences of the weights, and
whether the scores of all images are equal.

Rounding alone, which depends on the number of processes, grows in training: in two of the tiny networks from 1e-8 to
beyond 1e-5 in fifty steps. For them it is measured as well: on one process, with convolutions in another memory format.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

from lightning_modules.checkpoint import read_checkpoint
from tests.cluster.forked import start, wait
from tests.tiny.experiments import CONFIGS, arguments
from tests.tiny.weights import write_tiny_weights

BATCH = 6  # images of all processes together
EXPERIMENTS = (
    *(
        "rrdb",
        "srdiff",
        "srdiff_yoda",
        "sr3",
        "sr3_yoda",
        "resshift",
        "resshift_pixel",
        "dossr_pixel",
        "dossr_sd21",
    ),
    *("edm", "relay_x4", "relay_x4_concat", "flow", "skipdiff_sr3_x4"),
)
OPTIONS = {"skipdiff_sr3_x4": ["--model.init_args.epochs=2", "--model.init_args.minibatches=2"]}
ROUNDING = ("resshift_pixel", "dossr_pixel")  # experiments where it is measured


class Row(NamedTuple):
    """What an experiment showed on several processes against one.

    Attributes:
        name: The experiment.
        processes: How many.
        weights: Norm of the difference of all weights over their norm.
        rounding: The same for another order of sums on one process, where it is measured.
        moved: How far training moved the weights, over their norm.
        same_scores: Whether a test of one checkpoint has equal rows.
        images: How many images were scored.
    """

    name: str
    processes: int
    weights: float
    rounding: float | None
    moved: float
    same_scores: bool
    images: int


def overlay(folder: Path, steps: int, processes: int) -> Path:
    """A config for this many processes, each with its part of the batch."""
    trainer: dict[str, Any] = {"max_steps": steps, "val_check_interval": steps, "devices": processes}
    if processes > 1:
        options = {"broadcast_buffers": False, "process_group_backend": "gloo"}
        trainer["strategy"] = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": options}
    data = {"batch_size": BATCH // processes, "crop": 64, "val_crop": 64}
    path = folder / f"processes-{processes}.yaml"
    path.write_text(yaml.safe_dump({"trainer": trainer, "data": {"init_args": data}}))
    return path


def run(folder: Path, command: Sequence[str], processes: int) -> None:
    """Runs `lightning COMMAND` in `folder` on several processes.

    Raises:
        RuntimeError: one of them fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def prepare(rank: int) -> None:
        if processes > 1:
            os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    folder.mkdir(parents=True, exist_ok=True)
    started = [start(folder, command, partial(prepare, rank)) for rank in range(processes)]
    if any([wait(process, 1200) for process in started]):
        raise RuntimeError(f"{folder}: {(folder / 'log.txt').read_text()[-3000:]}")


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint that training changes."""
    content = read_checkpoint(checkpoint)
    tensors = {**content["state_dict"], **{f"raw {k}": v for k, v in content.get("current_model_state", {}).items()}}
    return {name: value.detach().double() for name, value in tensors.items() if value.is_floating_point()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The norm of the difference over the norm of the first."""
    assert one.keys() == other.keys()
    apart = sum(float((one[name] - other[name]).detach().square().sum()) for name in one)
    return float((apart / sum(float(value.square().sum()) for value in one.values())) ** 0.5)


def compare(top: Path, name: str, steps: int, several: Sequence[int]) -> list[Row]:
    """Trains and tests an experiment on one process and on several."""
    train = ["fit", *arguments(CONFIGS / f"{name}.yaml"), *OPTIONS.get(name, [])]
    run(top / name / "early", [*train, "--config", str(overlay(top, 1, 1))], 1)
    early = weights(next((top / name / "early").glob("runs/*/version_0/checkpoints/last.ckpt")))
    found = {}
    for processes in (1, *several):
        folder = top / name / str(processes)
        folder.mkdir(parents=True)
        run(folder, [*train, "--config", str(overlay(folder, steps, processes))], processes)
        version = next(folder.glob("runs/*/version_0"))
        run(folder, tested(top / name / "1", overlay(folder, steps, processes)), processes)
        rows = json.loads(next(folder.glob("runs/*/version_1/results.json")).read_text())["rows"]
        found[processes] = weights(version / "checkpoints/last.ckpt"), rows

    one, one_rows = found[1]
    rounding = None
    if name in ROUNDING:
        other_format = ["--config", str(overlay(top, steps, 1)), "--model.init_args.channels_last=false"]
        run(top / name / "rounding", [*train, *other_format], 1)
        rounding = distance(
            one, weights(next((top / name / "rounding").glob("runs/*/version_0/checkpoints/last.ckpt")))
        )
    table = []
    for processes in several:
        other, other_rows = found[processes]
        same = one_rows == other_rows and len(one_rows) > 0
        images = len({row["image"] for row in one_rows})
        table.append(Row(name, processes, distance(one, other), rounding, distance(one, early), same, images))
    shutil.rmtree(top / name)
    return table


def tested(one: Path, config: Path) -> list[str]:
    """The arguments of a test of the checkpoint that one process left."""
    checkpoint = next(one.glob("runs/*/version_0/checkpoints/last.ckpt"))
    experiment = checkpoint.parents[2].name
    return [
        "test",
        "--experiment",
        experiment,
        "--ckpt_path",
        str(checkpoint),
        "--config",
        str(config),
        "--trainer.accelerator=cpu",
    ]


def main(steps: int, several: Sequence[int], names: Sequence[str]) -> int:
    """Prints the table; the exit code is 0 if one process and several agree everywhere."""
    top = Path(tempfile.mkdtemp(prefix="diffsr-processes-"))
    tiny = top / "tiny"
    os.environ |= {"DIFFSR_TINY": str(tiny), "DIFFSR_CACHE": str(top / "cache"), "HF_HUB_OFFLINE": "1"}
    write_tiny_weights(tiny)
    print("| experiment | processes | weights | rounding alone | moved in training | test |\n|---|---|---|---|---|---|")
    good, began = True, time.monotonic()
    for name in names:
        for row in compare(top, name, steps, several):
            agrees = row.weights <= max(1e-5, 5 * (row.rounding or 0)) and row.same_scores
            rounding = "" if row.rounding is None else f"{row.rounding:.1e}"
            scores = f"{row.images} images, {'equal' if row.same_scores else 'NOT EQUAL'}"
            print(
                f"| {row.name} | {row.processes} | {row.weights:.1e} | {rounding} | {row.moved:.1e} | {scores} |",
                "" if agrees else "TOO FAR",
                flush=True,
            )
            good &= agrees
    shutil.rmtree(top)
    print(f"{time.monotonic() - began:.0f} s")
    return int(not good)


if __name__ == "__main__":
    steps, several, *names = sys.argv[1:] or ["50", "2,3"]
    sys.exit(main(int(steps), [int(number) for number in several.split(",")], names or EXPERIMENTS))
