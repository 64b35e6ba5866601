from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Cosine, ScaledLinear
from lightning_modules.diffusion.vp import VP, DomainShift
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.sampler import (
    Decider,
    Pattern,
    PolicyDecider,
    SkipBranches,
    SkipSampler,
    SubsetSearch,
)

SKIPS = ("respaced", "keep", "reset")


class Network:
    """A denoiser that depends on the image it belongs to, and keeps account of who asked at which time."""

    def __init__(self, batch_size: int) -> None:
        self.image = torch.linspace(-1, 1, batch_size).view(-1, 1, 1, 1)
        self.asked: list[tuple[float, list[int]]] = []

    def __call__(self, x_t: Tensor, t: Tensor, rows: Tensor | None = None, /) -> Tensor:
        rows = torch.arange(len(self.image)) if rows is None else rows
        self.asked += [(float(time), [int(row)]) for time, row in zip(t, rows, strict=True)]
        return torch.tanh(x_t + self.image[rows]) * (1 - t.float().view(-1, 1, 1, 1))

    def evaluations(self) -> Tensor:
        return torch.bincount(torch.tensor([row for _, rows in self.asked for row in rows]), minlength=len(self.image))


def small() -> VP:
    return VP(Cosine(20))


def sample(sampler: SkipSampler, network: Network, process: Process | None = None, seeds: Sequence[int] = ()) -> Tensor:
    process = process or small()
    anchor = torch.zeros(len(network.image), 3, 8, 8)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(anchor))]
    with process.drawing_from(generators):
        return sampler(network, process, anchor)


def mixed(decisions: int, batch_size: int) -> Tensor:
    return torch.rand(decisions, batch_size, generator=torch.Generator().manual_seed(5)) < 0.5


@pytest.mark.parametrize("skip", SKIPS)
def test_the_network_runs_only_for_images_that_run_and_each_is_counted(skip: str) -> None:
    runs, network = mixed(5, 6), Network(6)
    decider = Pattern(runs)
    sampler = SkipSampler(decider, coarse_steps=4, fine_steps=20, skip=skip)
    sample(sampler, network)
    assert torch.equal(network.evaluations(), sampler.evaluations(decider))
    assert torch.equal(network.evaluations(), 3 + runs[:-1].sum(0) + 1)


@pytest.mark.parametrize("skip", SKIPS)
def test_a_batch_of_mixed_decisions_equals_its_images_one_by_one(skip: str) -> None:
    runs = mixed(5, 4)
    together = sample(SkipSampler(Pattern(runs), 4, 20, skip), Network(4))
    for i in range(4):
        network = Network(4)
        network.image = network.image[i : i + 1]
        alone = sample(SkipSampler(Pattern(runs[:, i : i + 1]), 4, 20, skip), network, seeds=[i])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("skip", SKIPS)
def test_an_image_does_not_depend_on_what_its_neighbours_decide(skip: str) -> None:
    runs = mixed(5, 4)
    other = runs.clone()
    other[:, 1:] = ~other[:, 1:]
    first = sample(SkipSampler(Pattern(runs), 4, 20, skip), Network(4))
    second = sample(SkipSampler(Pattern(other), 4, 20, skip), Network(4))
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=1e-6)
    assert (first[1:] - second[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_running_every_step_is_the_fine_chain_from_its_entry() -> None:
    process, network = small(), Network(2)
    sampler = SkipSampler(Pattern([True] * 5), 4, 20)
    skipped = sample(sampler, network, process)

    class Plain(Ancestral):
        def grid(self, process: Process) -> Tensor:
            return sampler.grid(process)

    with process.drawing_from([torch.Generator().manual_seed(seed) for seed in (0, 1)]):
        plain = Plain(8)(Network(2), process, torch.zeros(2, 3, 8, 8))
    torch.testing.assert_close(skipped, plain, rtol=0, atol=0)


def test_respaced_tells_the_network_the_level_that_the_image_stands_at() -> None:
    network = Network(1)
    sample(SkipSampler(Pattern([False] * 5), 4, 20), network)
    # Everything skipped: one step from the entry at 5/20 to the clean image.
    assert [time for time, _ in network.asked] == pytest.approx([1, 0.75, 0.5, 0.25])
    network = Network(1)
    sample(SkipSampler(Pattern([False, True, False, False, True]), 4, 20), network)
    assert [time for time, _ in network.asked][3:] == pytest.approx([0.25, 0.15])


@pytest.mark.parametrize("skip", ["keep", "reset"])
def test_the_other_skips_go_by_the_clock(skip: str) -> None:
    network = Network(1)
    sample(SkipSampler(Pattern([False, True, False, False, True]), 4, 20, skip), network)
    assert [time for time, _ in network.asked][3:] == pytest.approx([0.2, 0.05])


def test_with_reset_only_the_last_skip_matters() -> None:
    patterns = ([True, True, False, True, True], [False, False, False, True, True])
    reset = [sample(SkipSampler(Pattern(runs), 4, 20, "reset"), Network(1)) for runs in patterns]
    assert torch.equal(*reset)
    keep = [sample(SkipSampler(Pattern(runs), 4, 20, "keep"), Network(1)) for runs in patterns]
    assert not torch.equal(*keep)


def test_a_region_is_filled_only_where_a_step_was_taken() -> None:
    process, runs = small(), mixed(5, 4)
    times: list[Tensor] = []

    def after_step(x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        times.append(t - s)
        return x_s + 100

    anchor = torch.zeros(4, 3, 8, 8)
    with process.drawing_from([torch.Generator().manual_seed(i) for i in range(4)]):
        x = SkipSampler(Pattern(runs), 4, 20)(lambda x_t, t, rows=None: 0 * x_t, process, anchor, after_step)
    # The last step leaves the clean estimate, zero, and one filling.
    torch.testing.assert_close(x, torch.full_like(x, 100))
    assert torch.equal(torch.stack(times[3:-1]) > 0, runs[:-1])


def test_branches_share_the_coarse_chain_and_its_noise() -> None:
    patterns = {"all": [True] * 5, "none": [False] * 5, "some": [False, True, True, False, True]}
    network = Network(2)
    branches = SkipBranches({name: Pattern(runs) for name, runs in patterns.items()}, SkipSampler(Pattern([]), 4, 20))
    sample(branches, network)
    assert network.evaluations().tolist() == [3 + 5 + 1 + 3] * 2
    for name, runs in patterns.items():
        alone = sample(SkipSampler(Pattern(runs), 4, 20), Network(2))
        torch.testing.assert_close(branches.states[name], alone, rtol=0, atol=0)


@pytest.mark.parametrize("skip", SKIPS)
def test_search_visits_the_result_of_every_subset(skip: str) -> None:
    found: dict[tuple[bool, ...], Tensor] = {}
    network = Network(2)
    search = SubsetSearch(lambda ran, x: found.update({tuple(ran): x}), SkipSampler(Pattern([]), 4, 20, skip))
    sample(search, network)
    expected = set(product([False, True], repeat=4))
    if skip == "reset":
        expected = {runs for runs in expected if list(runs) == sorted(runs)}
    assert {ran[:-1] for ran in found} == expected
    assert network.evaluations().tolist() == [3 + (15 if skip == "reset" else 31)] * 2
    for ran, state in found.items():
        alone = sample(SkipSampler(Pattern(list(ran)), 4, 20, skip), Network(2))
        torch.testing.assert_close(state, alone, rtol=0, atol=0)


def test_a_policy_decides_by_its_likelier_action_and_remembers() -> None:
    policy = SkipPolicy(channels=(4,), kernels=(3,), resize=8, hidden=4, decisions=5)
    decider = PolicyDecider(policy, greedy=True)
    sampler = SkipSampler(decider, 4, 20)
    sample(sampler, Network(3))
    judged, actions = decider.judgement(), torch.stack(decider.actions)
    assert torch.equal(torch.stack(decider.ran)[:-1], actions[:-1] == 0)
    assert judged.logprob.exp().min() >= 0.5
    logits, values = policy.sequence(torch.stack(decider.observations))
    torch.testing.assert_close(torch.stack(decider.logits), logits)
    torch.testing.assert_close(judged.value, values)


def test_drawn_actions_follow_the_policy() -> None:
    policy = SkipPolicy(channels=(4,), kernels=(3,), resize=8, hidden=4)
    with torch.no_grad():
        policy.actor[0].weight.zero_()
        policy.actor[0].bias.copy_(torch.tensor([0.25, 0.75]).log())
    torch.manual_seed(0)
    decider = PolicyDecider(policy, greedy=False)
    decider.begin(torch.zeros(4000, 3, 8, 8))
    assert decider.choose(0, torch.zeros(4000, 3, 8, 8)).float().mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "steps", "message"),
    [
        ({"coarse_steps": 10, "fine_steps": 100}, 15, "VP of 15 steps.*cannot be sampled with 100"),
        ({"coarse_steps": 4, "fine_steps": 20, "start": 0.5}, 20, r"start must lie in \(0.75, 1\]"),
    ],
)
def test_a_process_without_such_levels_is_refused(arguments: dict[str, int], steps: int, message: str) -> None:
    sampler = SkipSampler(Pattern([True]), **arguments)
    with pytest.raises(ValueError, match=message):
        sampler.times(VP(Cosine(steps)))


def test_the_chain_begins_where_the_process_does_and_never_before() -> None:
    process = DomainShift(ScaledLinear(1000, 0.00085, 0.012), shift_steps=500)
    coarse, fine = SkipSampler(Pattern([True])).times(process)
    assert coarse[0] == 0.5 and coarse[-1] == fine[0] == 0.051
    with pytest.raises(ValueError, match=r"DomainShift of 1000 steps: .* start must lie in \(0.45, 0.5\]"):
        SkipSampler(Pattern([True]), start=0.99).times(process)


def test_a_process_whose_coarse_and_fine_grids_do_not_meet_is_refused() -> None:
    class Shifted(VP):
        def grid(self, steps: int) -> Tensor:
            return super().grid(steps) ** (steps / 10)

    with pytest.raises(ValueError, match=r"the coarse chain ends at t = 0.5743 and the fine steps begin at t = 0.0625"):
        SkipSampler(Pattern([True]), 4, 20).times(Shifted(Cosine(20)))


def test_steps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="fine_steps must be a multiple of coarse_steps"):
        SkipSampler(Pattern([True]), 10, 95)


def test_a_decider_that_forgets_the_forced_step_still_ends_clean() -> None:
    class Never(Decider):
        def choose(self, decision: int, x: Tensor) -> Tensor:
            return torch.zeros(x.shape[0], dtype=torch.bool)

    decider, network = Never(), Network(2)
    sample(SkipSampler(decider, 4, 20), network)
    assert decider.ran[-1].all() and not torch.stack(decider.ran[:-1]).any()
