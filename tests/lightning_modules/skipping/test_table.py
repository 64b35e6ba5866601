"""The table of ways to skip, over several processes, and its verdict."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.sampler import Pattern, PolicyDecider, SkipSampler
from lightning_modules.skipping.table import Decisions, SkipTable

REWARDS = torch.tensor([0.5, 2.0, 1.0])  # of three images, under the policy
PLAN = SkipSampler(Pattern([True] * 5), 4, 20)


def table_of(images: Tensor) -> SkipTable:
    table = SkipTable()
    for reward in images:
        for name, change in (("policy", 0.0), ("all-run", -1.0)):
            table.add(name, {"reward": reward[None] + change, "evaluations": torch.tensor([7.0])})
        for ran, change in (((True, False, True), 0.25), ((False, True, True), -0.5)):
            table.add_subset(ran, {"reward": reward[None] + change, "evaluations": torch.tensor([5.0])})
        table.images += 1
    return table


def decisions_of(images: Tensor) -> Decisions:
    """What a policy decides on images of one value each."""
    torch.manual_seed(0)
    policy = SkipPolicy(channels=(4,), kernels=(3,), resize=8, hidden=4, decisions=5)
    decisions = Decisions()
    for reward in images:
        x = reward.expand(1, 3, 8, 8)
        decider = PolicyDecider(policy, [f"image {reward}"])
        decider.begin(x)
        with torch.no_grad():
            for k in range(5):
                decider.decide(k, x, forced=k == 4)
        decisions.record(decider)
    return decisions


def process(rank: int, folder: str) -> None:
    """Sees its share of the images: the second process of three sees none."""
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=3)
    share = REWARDS[[[0, 1], [], [2]][rank]]
    table = table_of(share)
    table.gather()
    summary = decisions_of(share).summary(PLAN)
    torch.save({"rows": table.rows(), "images": table.images, "summary": summary}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_every_process_ends_with_the_table_of_all(tmp_path: Path) -> None:
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=3)
    expected, summary = table_of(REWARDS), decisions_of(REWARDS).summary(PLAN)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["images"] == 3
        assert found["rows"].keys() == expected.rows().keys()
        for name, row in expected.rows().items():
            assert found["rows"][name] == pytest.approx(row)
        torch.testing.assert_close(found["summary"], summary)


def test_the_table_says_who_wins(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of(REWARDS)
    assert table.rows()["best static subset"]["reward"] == pytest.approx(table.rows()["policy"]["reward"] + 0.25)
    table.print()
    printed = " ".join(capsys.readouterr().out.split())
    assert "means over 3 images" in printed
    assert "The best static subset (101) wins: it gets 0.25 more reward than the policy" in printed
    assert "runs: [true, false, true]" in printed
    for name in table.subsets:
        table.subsets[name] -= 3
    assert table.verdict() == "The policy beats the best static subset (101) by 0.75."
