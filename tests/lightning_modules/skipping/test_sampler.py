from collections.abc import Sequence
from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.parameterization import Clean
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import KeyedNoise
from lightning_modules.diffusion.samplers import Ancestral
from lightning_modules.diffusion.schedules import Cosine, ScaledLinear
from lightning_modules.diffusion.vp import VP, DomainShift
from lightning_modules.diffusion.yoda import YODA, Fill
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.sampler import Decider, FineSteps, Pattern, PolicyDecider, SkipSampler
from tests.fakes import FakeDenoiser

SKIPS = ("respaced", "keep", "reset")


class Network(nn.Module):
    """Writes a clean image that depends on the image it belongs to; keeps account of who asked at which time."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.image = torch.linspace(-1, 1, batch_size).view(-1, 1, 1, 1)
        self.asked: list[tuple[float, int]] = []

    def forward(self, x: Tensor, label: Tensor, *, image: Tensor, row: Tensor) -> Tensor:
        self.asked += zip(label.tolist(), row.tolist(), strict=True)
        return torch.tanh(x + image) * (1 - label.view(-1, 1, 1, 1))

    def evaluations(self) -> Tensor:
        return torch.bincount(torch.tensor([row for _, row in self.asked]), minlength=len(self.image))

    def denoiser(self) -> Denoiser:
        rows = torch.arange(len(self.image))
        condition = {"image": self.image, "row": rows}
        return Denoiser(self, small(), Clean("time"), torch.zeros(len(rows), 3, 8, 8), condition)


def small() -> VP:
    return VP(Cosine(20))


def keyed(seeds: Sequence[int]) -> KeyedNoise:
    return KeyedNoise(torch.Generator().manual_seed(seed) for seed in seeds)


def sample(sampler: SkipSampler, network: Network) -> Tensor:
    return sampler(network.denoiser(), keyed(range(len(network.image))))


def prepared(plan: SkipSampler, network: Network, after_step: Fill | None = None) -> FineSteps:
    return plan.prepare(network.denoiser(), keyed(range(len(network.image))), after_step)


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
        denoiser = Network(4).denoiser().select(torch.tensor([i]))
        alone = SkipSampler(Pattern(runs[:, i : i + 1]), 4, 20, skip)(denoiser, keyed([i]))
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
    sampler = SkipSampler(Pattern([True] * 5), 4, 20)
    skipped = sample(sampler, Network(2))

    class Plain(Ancestral):
        def grid(self, process: Process) -> Tensor:
            return sampler.grid(process)

    plain = Plain(8)(Network(2).denoiser(), keyed([0, 1]))
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
    runs, times = mixed(5, 4), list[Tensor]()

    def after_step(x_s: Tensor, *, t: Tensor, s: Tensor) -> Tensor:
        times.append(t - s)
        return x_s + 100

    denoiser = FakeDenoiser(small(), torch.zeros(4, 3, 8, 8), lambda x_t, t: 0 * x_t)
    x = SkipSampler(Pattern(runs), 4, 20)(denoiser, keyed(range(4)), after_step)
    # The last step leaves the clean estimate, zero, and one filling.
    torch.testing.assert_close(x, torch.full_like(x, 100))
    assert torch.equal(torch.stack(times[3:-1]) > 0, runs[:-1])


def test_branches_share_the_coarse_chain_and_its_noise() -> None:
    patterns = {"all": [True] * 5, "none": [False] * 5, "some": [False, True, True, False, True]}
    network, plan = Network(2), SkipSampler(Pattern([]), 4, 20)
    steps = prepared(plan, network)
    states = {name: plan.refine(Pattern(runs), steps.fork()) for name, runs in patterns.items()}
    assert network.evaluations().tolist() == [3 + 5 + 1 + 3] * 2
    for name, runs in patterns.items():
        alone = sample(SkipSampler(Pattern(runs), 4, 20), Network(2))
        torch.testing.assert_close(states[name], alone, rtol=0, atol=0)


@pytest.mark.parametrize("skip", SKIPS)
def test_search_visits_the_result_of_every_subset(skip: str) -> None:
    found: dict[tuple[bool, ...], Tensor] = {}
    network, plan = Network(2), SkipSampler(Pattern([]), 4, 20, skip)
    plan.visit_subsets(prepared(plan, network), lambda ran, x: found.update({tuple(ran): x}))
    expected = set(product([False, True], repeat=4))
    if skip == "reset":
        expected = {runs for runs in expected if list(runs) == sorted(runs)}
    assert {ran[:-1] for ran in found} == expected
    assert network.evaluations().tolist() == [3 + (15 if skip == "reset" else 31)] * 2
    for ran, state in found.items():
        alone = sample(SkipSampler(Pattern(list(ran)), 4, 20, skip), Network(2))
        torch.testing.assert_close(state, alone, rtol=0, atol=0)


def test_noise_that_cannot_be_drawn_again_is_refused_where_it_must_be() -> None:
    plan = SkipSampler(Pattern([]), 4, 20)
    steps = plan.prepare(Network(2).denoiser(), torch.randn_like, None)
    with pytest.raises(TypeError, match="only noise of KeyedNoise can be drawn again"):
        steps.fork()


class Halves(nn.Module):
    """Attention of 1 on the left and 0 on the right."""

    def forward(self, lr: Tensor) -> Tensor:
        return (torch.arange(lr.shape[-1]) < lr.shape[-1] / 2).float().expand(len(lr), 1, *lr.shape[-2:])


@pytest.mark.parametrize("lr_noise", ["fresh", "fixed"])
def test_forks_fill_a_region_with_the_same_noise(lr_noise: Literal["fresh", "fixed"]) -> None:
    network, plan = Network(2), SkipSampler(Pattern([]), 4, 20)
    yoda = YODA(Halves(), lower_bound=0.01, lr_noise=lr_noise)  # the right half waits until the last step is done
    anchor = torch.full((2, 3, 8, 8), 0.5)

    def filled() -> FineSteps:
        activity = yoda.activity(small(), yoda.attend(anchor, size=(8, 8)), plan.grid(small()))
        fill = yoda.fill(small(), anchor, activity, keyed([100, 101]))
        return prepared(plan, network, fill)

    def states(steps: FineSteps) -> Tensor:
        """After each of four steps, two of which the second image skips."""
        x, level, seen = steps.entry, steps.times[0].expand(2), []
        for decision in range(4):
            x, level = steps(x, level, decision, torch.tensor([True, decision % 2 == 0]))
            seen.append(x)
        return torch.stack(seen)

    steps = filled()
    first, second = states(steps.fork()), states(steps.fork())
    assert torch.equal(first, second)
    assert torch.equal(states(steps), first)  # forks took nothing from it

    # What waits is the anchor at the level of the moment, with noise that is drawn once or each time.
    process, times = small(), steps.times
    noise = [
        (first[k, :1, ..., 4:] - process.mean(x0=anchor, anchor=anchor, t=times[k + 1 : k + 2])[:1, ..., 4:])
        / float(process.std(times[k + 1]))
        for k in range(4)
    ]
    assert torch.allclose(noise[0], noise[1], atol=1e-4) == (lr_noise == "fixed")
    assert all(0.7 < part.std() < 1.3 for part in noise)


def test_a_policy_decides_by_its_likelier_action_and_remembers() -> None:
    policy = SkipPolicy(channels=(4,), kernels=(3,), resize=8, hidden=4, decisions=5)
    decider = PolicyDecider(policy)
    sampler = SkipSampler(decider, 4, 20)
    sample(sampler, Network(3))
    evaluation, actions = decider.evaluation(), torch.stack(decider.actions)
    assert torch.equal(torch.stack(decider.ran)[:-1], actions[:-1] == 0)
    assert evaluation.logprob.exp().min() >= 0.5
    logits, values = policy.sequence(torch.stack(decider.observations))
    torch.testing.assert_close(torch.stack(decider.logits), logits)
    torch.testing.assert_close(evaluation.value, values)


def test_drawn_actions_follow_the_policy() -> None:
    policy = SkipPolicy(channels=(4,), kernels=(3,), resize=8, hidden=4)
    with torch.no_grad():
        policy.actor[0].weight.zero_()
        policy.actor[0].bias.copy_(torch.tensor([0.25, 0.75]).log())
    decider = PolicyDecider(policy, [f"image {index}" for index in range(4000)])
    decider.begin(torch.zeros(4000, 3, 8, 8))
    assert decider.choose(0, torch.zeros(4000, 3, 8, 8)).float().mean() == pytest.approx(0.25, abs=0.03)


def test_the_draws_of_an_image_are_its_own() -> None:
    policy, keys, x = (
        SkipPolicy(channels=(4,), kernels=(3,), resize=8, hidden=4),
        list("abcdefgh"),
        torch.zeros(8, 3, 8, 8),
    )

    def draw(keys: list[str]) -> Tensor:
        decider = PolicyDecider(policy, keys)
        decider.begin(x[: len(keys)])
        return torch.stack([decider.choose(decision, x[: len(keys)]) for decision in range(6)])

    together = draw(keys)
    assert torch.equal(torch.cat([draw(keys[:3]), draw(keys[3:])], dim=1), together)
    assert len({tuple(column.tolist()) for column in together.T}) > 4


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
