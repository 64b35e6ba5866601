"""One study of a claim: trains its arms, scores them, compares them.

    python -m benchmarks.claims.study benchmarks/claims/yoda.yaml --runs /scratch/claims [--arms A,B] [--seeds 0,1]

A study is a YAML file: the `question`; `shared`, what `lightning fit` is given for all arms; `arms`, by name what each
adds to that; `steps` and `seeds`; `sets`, by name what `lightning test` is given to score on; `samplers`, by name what
it is given to sample with.

Nothing is done twice: an arm that was interrupted goes on with its last checkpoint, exactly; one that is trained is
only scored; a score that exists stays. So the command is repeated until all is there, in pieces of any length. Beside
the runs, `RUNS/STUDY/SET-SAMPLER/compare.md` has a table of the arms so far: means over images and seeds, the standard
deviation of the seeds, and the difference to the first arm with a bootstrap interval over the paired images.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """The training of one arm with one seed, in a folder of its own.

    Attributes:
        arm: Its name in the study.
        seed: Of everything random.
        arguments: What it adds to the shared options of `lightning fit`.
        folder: Where everything about it lies.
    """

    arm: str
    seed: int
    arguments: tuple[str, ...]
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The newest state of its training."""
        return self.folder / "fit" / "last" / "checkpoints" / "last.ckpt"


def options(given: dict[str, Any] | None) -> list[str]:
    """Command line options of a part of the study: `config`, a list of files, and dotted names of arguments."""
    found: list[str] = []
    for name, value in (given or {}).items():
        if name == "config":
            found += [word for path in value for word in ("--config", str(ROOT / path))]
        else:
            found.append(f"--{name}={'null' if value is None else value}")
    return found


def lightning(*arguments: str) -> None:
    """Runs a command; its output is shown.

    Raises:
        CalledProcessError: it failed.
    """
    print("lightning", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "lightning_modules.cli", *arguments], check=True)


def trained_steps(checkpoint: Path) -> int:
    """Steps that a checkpoint has been trained for; 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def train(run: Run, study: dict[str, Any]) -> None:
    """Trains one arm, or goes on with it, to the study's steps."""
    done = trained_steps(run.checkpoint)
    if done >= study["steps"]:
        return
    lightning(
        "fit",
        *options(study["shared"]),
        *run.arguments,
        f"--seed_everything={run.seed}",
        f"--trainer.max_steps={study['steps']}",
        "--experiment=fit",
        f"--trainer.logger.init_args.save_dir={run.folder}",
        *([f"--ckpt_path={run.checkpoint.resolve()}"] if done else []),
    )


def score(run: Run, study: dict[str, Any]) -> None:
    """Scores one arm on each set with each sampler, where that is not done."""
    for name, arguments in cells(study):
        if not (run.folder / name / "last" / "results.json").is_file():
            places = [f"--experiment={name}", f"--trainer.logger.init_args.save_dir={run.folder}"]
            lightning("test", f"--ckpt_path={run.checkpoint.resolve()}", *arguments, *places)


def cells(study: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The name of each pair of set and sampler, with its options of `lightning test`."""
    for set_name, of_set in study["sets"].items():
        for sampler_name, of_sampler in study["samplers"].items():
            yield f"{set_name}-{sampler_name}", [*options(of_set), *options(of_sampler)]


def main() -> None:
    """Trains, scores and compares what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--runs", type=Path, required=True, help="a folder that outlives this clone")
    parser.add_argument("--arms", help="names, separated by commas (default: all)")
    parser.add_argument("--seeds", help="numbers, separated by commas (default: the study's)")
    given = parser.parse_args()

    study: Any = OmegaConf.to_container(OmegaConf.load(given.study))
    folder = given.runs.resolve() / given.study.stem
    arms = given.arms.split(",") if given.arms else list(study["arms"])
    unknown = sorted(set(arms) - set(study["arms"]))
    if unknown:
        parser.error(f"--arms {', '.join(unknown)}: {given.study} has {', '.join(study['arms'])}")
    seeds = [int(seed) for seed in given.seeds.split(",")] if given.seeds else study["seeds"]

    runs = [
        Run(arm, seed, tuple(options(study["arms"][arm])), folder / f"{arm}-{seed}") for seed in seeds for arm in arms
    ]
    for run in runs:
        train(run, study)
        score(run, study)
    for name, _ in cells(study):
        results = [f"{run.arm}={run.folder / name / 'last' / 'results.json'}" for run in runs]
        lightning("compare", *results, f"--out={folder / name}")


if __name__ == "__main__":
    main()
