"""`python -m tests.cluster.sharded [EXPERIMENT ...]`: weights spread over two processes (FSDP2) against one process.

Each experiment trains some steps with a moving average: on one process; on two that share the weights; and half of the
steps on either, from whose checkpoint the other goes on. All must end with the same weights. Then the checkpoint of the
two is tested on one process and on two that share the weights.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.cluster.processes import BATCH, OPTIONS, distance, run, tested, weights
from tests.tiny.experiments import CONFIGS, arguments
from tests.tiny.weights import write_tiny_weights

EXPERIMENTS = ("sr3", "srdiff_yoda", "dossr_sd21", "skipdiff_sr3_x4")
STEPS = 4
EMA = "callbacks.ema.EMA"


def overlay(folder: Path, name: str, steps: int, processes: int) -> list[str]:
    """Options for one process, or for several that share the weights."""
    trainer = {"max_steps": steps, "val_check_interval": STEPS // 2, "devices": processes, "inference_mode": False}
    data = {"batch_size": BATCH // processes, "crop": 64, "val_crop": 64}
    content = {"trainer": trainer, "data": {"init_args": data}}
    if processes > 1:
        options = {"smallest": 500, "process_group_backend": "gloo"}
        trainer["strategy"] = {"class_path": "lightning_modules.sharding.Sharded", "init_args": options}
    if EMA not in "".join(Path(path).read_text() for path in arguments(CONFIGS / f"{name}.yaml")[1::2]):
        method = CONFIGS / "method" / f"{name}.yaml"
        if not method.is_file() or EMA not in method.read_text():
            trainer["callbacks+"] = [{"class_path": EMA, "init_args": {"decay": 0.5}}]
    path = folder / f"{name}-{steps}-{processes}.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--config", str(path)]


def newest(folder: Path) -> Path:
    """The last checkpoint that was written below a folder."""
    return max(folder.glob("runs/*/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)


def compare(top: Path, name: str) -> bool:
    """Whether all ways of training end with the same weights, and both tests with the same scores."""
    train = ["fit", *arguments(CONFIGS / f"{name}.yaml"), *OPTIONS.get(name, [])]
    folder = top / name
    folder.mkdir()
    ways = {"one": [(STEPS, 1)], "two": [(STEPS, 2)], "two-one": [(STEPS // 2, 2), (STEPS, 1)]}
    ways["one-two"] = [(STEPS // 2, 1), (STEPS, 2)]
    for way, lives in ways.items():
        for life, (steps, processes) in enumerate(lives):
            goes_on = ["--ckpt_path", "last"] if life else []
            run(folder / way, [*train, *overlay(folder, name, steps, processes), *goes_on], processes)
    one = weights(newest(folder / "one"))
    apart = {way: distance(one, weights(newest(folder / way))) for way in ways if way != "one"}

    rows = []
    for processes in (1, 2):
        config = Path(overlay(folder, name, STEPS, processes)[1])
        run(folder / f"test-{processes}", tested(folder / "two", config), processes)
        rows.append(json.loads(next((folder / f"test-{processes}").glob("runs/*/*/results.json")).read_text())["rows"])
    scores = max(abs(mine["model"] - theirs["model"]) / abs(mine["model"]) for mine, theirs in zip(*rows, strict=True))
    print(f"| {name} | {' | '.join(f'{value:.1e}' for value in apart.values())} | {scores:.1e} |", flush=True)
    # Scores are of 8 bits, and one process convolves in another memory format than two that share the weights.
    return max(apart.values()) <= 1e-5 and scores <= 1e-3


def main(names: Sequence[str]) -> int:
    """Prints the table; the exit code is 0 if all agree."""
    top = Path(tempfile.mkdtemp(prefix="diffsr-sharded-"))
    os.environ |= {"DIFFSR_TINY": str(top / "tiny"), "DIFFSR_CACHE": str(top / "cache"), "HF_HUB_OFFLINE": "1"}
    write_tiny_weights(top / "tiny")
    print(
        "| experiment | two sharing | two sharing, then one | one, then two sharing | scores |\n|---|---|---|---|---|"
    )
    good = [compare(top, name) for name in names]
    shutil.rmtree(top)
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or EXPERIMENTS))
