"""A skip policy against random and fixed skipping, on a small SR3 trained on real photographs.

    python benchmarks/skipdiff/compare.py --train bsds400 --test set5 gt --backbone-minutes 30 --policy-minutes 20

Trains the backbone and the policy beside this file for the given minutes on this machine, unless `--runs` holds their
checkpoints. Then the centre patches of the test images are sampled with the same noise and: all steps, no steps, the
policy's more likely actions, `--draws` random draws with the policy's mean number of steps, and each of the 512 fixed
subsets. Differences of the reward are paired by image and bootstrapped. The best fixed subset is chosen once on the
same images, which favours it, and once on the other half of the images.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from datamodules.batch import Batch
from datamodules.folder import Folder
from lightning_modules.config import load_method
from lightning_modules.running.experiment import run
from lightning_modules.skipdiff import SkipDiff
from lightning_modules.skipping.sampler import Decider, Pattern, PolicyDecider
from lightning_modules.super_resolver import trimmed

HERE = Path(__file__).parent
RESAMPLES = 10_000
Rows = dict[str, dict[str, Tensor]]  # scores of N images, [N], by way to skip and column


def trained(name: str, minutes: float, runs: Path, train: str, *extra: str) -> Path:
    """Checkpoint of one configuration beside this file, trained for `minutes` unless it exists."""
    checkpoint = runs / name / "last" / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        hours, seconds = divmod(int(timedelta(minutes=minutes).total_seconds()), 3600)
        clock = f"00:{hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}"
        places = ("--trainer.logger.init_args.save_dir", str(runs), "--data.init_args.train", train)
        run(["fit", "--config", str(HERE / f"{name}.yaml"), "--trainer.max_time", clock, *places, *extra])
    return checkpoint


def batches(folders: Sequence[str], crop: int) -> Iterator[Batch]:
    """Centre patches of the test images, up to eight at a time, with MATLAB's bicubic degradation."""
    for folder in folders:
        data = Folder(test=folder, scale=4, val_crop=crop, val_batch_size=8, num_workers=0)
        for raw in data.test_dataloader():
            yield data.on_after_batch_transfer(raw, 0)


def measure(
    model: SkipDiff, batch: Batch, sr: Tensor, evaluations: Tensor, all_run: Tensor | None
) -> dict[str, Tensor]:
    """Reward, evaluations, quality and metrics, `[B]` each; the reward is relative to `all_run` if given."""
    measured = model.reward.measure(sr, batch["hr"])
    quality = model.reward.quality(measured)
    reward = model.reward(quality, all_run=quality if all_run is None else all_run, evaluations=evaluations)
    return {"reward": reward, "evaluations": evaluations.float(), "quality": quality, **measured}


def compare(model: SkipDiff, batch: Batch, draws: int, rate: float) -> tuple[Rows, Tensor]:
    """Scores of one batch by way to skip, and the rewards of the 512 subsets, `[512,B]`."""
    decisions, size = model.plan.decisions, len(batch["key"])
    deciders: dict[str, Decider] = {
        "every step": Pattern([True] * decisions),
        "no step": Pattern([False] * decisions),
        "policy": PolicyDecider(model.policy),
        **{f"random {i}": Pattern(torch.rand(decisions, size) < rate) for i in range(draws)},
    }

    images = model.rollouts.images(batch, deciders)
    counts = {name: model.plan.evaluations(decider) for name, decider in deciders.items()}
    all_run = measure(model, batch, images["every step"], counts["every step"], None)["quality"]
    rows = {name: measure(model, batch, image, counts[name], all_run) for name, image in images.items()}
    rows["random"] = mean_of([rows.pop(f"random {i}") for i in range(draws)])

    return rows, rewards_of_subsets(model, batch, all_run)


def rewards_of_subsets(model: SkipDiff, batch: Batch, all_run: Tensor) -> Tensor:
    """The reward of each image under each of the 512 subsets, `[512,B]`."""
    rewards: list[Tensor] = []
    with model.base.sampling(batch) as padded:
        started, denoiser, randn, fill = model.base.prepare(padded)

        def visit(ran: Sequence[bool], state: Tensor) -> None:
            image = trimmed(model.base.decode(state, started), batch)
            evaluations = torch.full((len(image),), model.plan.coarse_steps - 1 + sum(ran))
            rewards.append(measure(model, batch, image, evaluations, all_run)["reward"])

        model.plan.visit_subsets(model.plan.prepare(denoiser, randn, fill), visit)
    return torch.stack(rewards)


def mean_of(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means over several draws, image by image."""
    return {column: torch.stack([row[column] for row in rows]).mean(dim=0) for column in rows[0]}


def interval(difference: Tensor) -> list[float]:
    """Mean of paired differences `[N]`, and the ends of its bootstrapped 95 % interval."""
    index = torch.randint(len(difference), (RESAMPLES, len(difference)))
    means = difference[index].mean(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975]))
    return [float(difference.mean()), float(low), float(high)]


def cross_fitted(subsets: Tensor) -> Tensor:
    """Reward of each image with the subset that is best on the other half of the images: `[512,N]` to `[N]`."""
    even = torch.arange(subsets.shape[1]) % 2 == 0
    best_on_even, best_on_odd = (subsets[:, chosen].mean(dim=1).argmax() for chosen in (even, ~even))
    return torch.where(even, subsets[best_on_odd], subsets[best_on_even])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="folder of photographs to train on")
    parser.add_argument("--test", required=True, nargs="+", help="folders of photographs to compare on")
    parser.add_argument("--backbone-minutes", type=float, default=30)
    parser.add_argument("--policy-minutes", type=float, default=20)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--draws", type=int, default=4, help="random skippings of each image")
    parser.add_argument("--price", type=float, default=0.01)
    parser.add_argument("--runs", type=Path, default=Path("runs/skipdiff_study"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    study(parser.parse_args())


def study(arguments: argparse.Namespace) -> None:
    """Trains, compares, writes."""
    torch.manual_seed(0)
    backbone = trained("backbone", arguments.backbone_minutes, arguments.runs, arguments.train)
    priced = ("--model.init_args.reward.init_args.price", str(arguments.price))
    based = ("--model.init_args.base_checkpoint", str(backbone))
    policy = trained("policy", arguments.policy_minutes, arguments.runs, arguments.train, *priced, *based)

    model = load_method(policy)
    assert isinstance(model, SkipDiff)

    # The random draws run as many steps as the policy does on average.
    rate = mean_rate(model, arguments)
    found = [compare(model, batch, arguments.draws, rate) for batch in batches(arguments.test, arguments.crop)]
    rows = {
        name: {column: torch.cat([row[name][column] for row, _ in found]) for column in found[0][0][name]}
        for name in found[0][0]
    }
    write(arguments, rows, torch.cat([subsets for _, subsets in found], dim=1))


def mean_rate(model: SkipDiff, arguments: argparse.Namespace) -> float:
    """The share of the steps, without the forced last one, that the policy runs on the test images."""
    ran = []
    for batch in batches(arguments.test, arguments.crop):
        model.super_resolve(batch)
        ran.append(torch.stack(model.greedy.ran)[:-1].float())
    return float(torch.cat(ran, dim=1).mean())


def write(arguments: argparse.Namespace, rows: Rows, subsets: Tensor) -> None:
    """Writes and prints the page: the table and the paired differences."""
    policy, count = rows["policy"]["reward"], subsets.shape[1]
    others = {
        "random, same mean": rows["random"]["reward"],
        "best subset on these images": subsets[subsets.mean(dim=1).argmax()],
        "best subset of the other half": cross_fitted(subsets),
        "every step": rows["every step"]["reward"],
        "no step": rows["no step"]["reward"],
    }
    columns = list(rows["policy"])

    lines = [
        "# Skip policy against random and fixed skipping",
        "",
        str(__doc__).strip().split("\n\n")[-1],
        "",
        f"Backbone {arguments.backbone_minutes:g} min, policy {arguments.policy_minutes:g} min, price "
        f"{arguments.price:g} an evaluation; {count} test patches of {arguments.crop} px, torch {torch.__version__}.",
        "",
        "| way to skip | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{float(row[column].mean()):.4f}" for column in columns) + " |")

    lines += ["", "| reward of the policy less that of | mean | 95 % |", "|---|---|---|"]
    results = {name: interval(policy - other) for name, other in others.items()}
    lines += [f"| {name} | {mean:+.4f} | {low:+.4f} to {high:+.4f} |" for name, (mean, low, high) in results.items()]

    patterns = rows["policy"]["evaluations"].unique(return_counts=True)
    used = ", ".join(f"{int(value)}: {int(n)}" for value, n in zip(*patterns, strict=True))
    lines += ["", f"Evaluations of the policy, images by number: {used}."]
    if torch.equal(policy, others["best subset on these images"]):
        lines.append("On every image its result is that of the best fixed subset: it tells no image from another.")

    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "skipdiff_study.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
