"""Speed of the data loader: against a bare decode of the same bytes, and as the time a training step waits for it.

    python benchmarks/data.py [--steps 40] [--repeats 5]

The bare decode reads every image of the bundled training set from bytes in memory into an array with Pillow. It is
compared with the same number of training patches from the loader, in this process and in one worker process. All are
measured in processor time, on which other processes have little effect, and take turns. Then the quick start is trained
for some steps under Lightning's profiler.
"""

import argparse
import io
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.photos import Photos
from lightning_modules.config_files import CONFIGS
from lightning_modules.running.experiment import run


def members(folder: Path) -> list[bytes]:
    """The encoded training images of the shards in `folder`."""
    content = []
    for path in sorted(folder.glob("photos-train-*.tar")):
        with tarfile.open(path) as tar:
            files = [tar.extractfile(member) for member in tar if ".hr." in member.name]
            content += [file.read() for file in files if file]
    return content


def decode_all(content: list[bytes]) -> None:
    """Decodes images with Pillow."""
    for image in content:
        np.asarray(Image.open(io.BytesIO(image)))


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds that this process takes for `work`."""
    start = time.process_time()
    work()
    return time.process_time() - start


def worker_seconds(data: Photos, batches: int) -> float:
    """Processor seconds of a worker process that makes `batches` batches, read after the process has ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    stream = iter(data.train_dataloader())
    for _ in range(batches):
        next(stream)
    del stream
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loader_rates(repeats: int) -> dict[str, float]:
    """Images per second of processor time: bare decode, loader in this process, loader in one worker."""
    data = {workers: Photos(crop=64, batch_size=8, num_workers=workers) for workers in (0, 1)}
    data[0].prepare_data()
    content = members(data[0].folder)
    batches = len(content) // 8
    stream = iter(data[0].train_dataloader())

    rates: dict[str, list[float]] = {"bare decode": [], "loader": [], "loader, one worker": []}
    for _ in range(repeats):
        rates["bare decode"].append(len(content) / seconds(lambda: decode_all(content)))
        rates["loader"].append(8 * batches / seconds(lambda: list(islice(stream, batches))))
        # Four times the batches, so that starting the worker counts less.
        rates["loader, one worker"].append(32 * batches / worker_seconds(data[1], 4 * batches))
    return {name: statistics.median(values) for name, values in rates.items()}


def waiting(steps: int) -> tuple[float, float]:
    """Mean seconds of a training step of the quick start, and of waiting for its batch."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0", "--trainer.profiler=simple"]
        options += [f"--trainer.logger.init_args.save_dir={folder}"]
        trainer = run(["fit", "--config", str(CONFIGS / "quickstart.yaml"), *options]).trainer

    # The first two steps are left out: they include starting up.
    durations = trainer.profiler.recorded_durations  # type: ignore[attr-defined]
    wait = durations["[_TrainingEpochLoop].train_dataloader_next"][2:]
    step = durations["run_training_batch"][2:]
    return statistics.mean(step), statistics.mean(wait)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    rates = loader_rates(options.repeats)
    for name, rate in rates.items():
        print(f"{name:20s} {rate:7.1f} images/s  {rate / rates['bare decode']:6.1%} of the bare decode")

    step, wait = waiting(options.steps)
    print(f"quick start: a step takes {1e3 * step:.0f} ms and waits {1e3 * wait:.2f} ms, {wait / (step + wait):.2%}")


if __name__ == "__main__":
    main()
