"""Noise that follows from keys, and can be drawn again."""

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.randomness import KeyedNoise, StepDraws, drawn_on, seeded

CPU = torch.device("cpu")
LIKE = torch.zeros(3, 2, 4, 4)


def drawn(keys: list[str], purpose: str = "sampler", draws: int = 2) -> Tensor:
    noise = KeyedNoise.of(keys, purpose, CPU)
    return torch.stack([noise(LIKE[: len(keys)]) for _ in range(draws)])


def test_the_noise_of_a_sample_follows_from_its_key_alone() -> None:
    together = drawn(["a", "b", "c"])
    for i, key in enumerate("abc"):
        assert torch.equal(drawn([key])[:, 0], together[:, i])
    assert torch.equal(drawn(["c", "a", "b"]), together[:, [2, 0, 1]])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(drawn(["a", "b", "c"], "region"), together)


def test_the_global_seed_decides_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    first = drawn(["a"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert not torch.equal(drawn(["a"]), first)


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = drawn(["a"])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(drawn(["a"]), first)


def test_a_fork_goes_on_with_the_same_numbers_and_disturbs_nothing() -> None:
    noise, undisturbed = (KeyedNoise.of(["a", "b", "c"], "sampler", CPU) for _ in range(2))
    assert torch.equal(noise(LIKE), undisturbed(LIKE))
    first, second = noise.fork(), noise.fork()
    expected = torch.stack([undisturbed(LIKE) for _ in range(3)])
    for source in (first, noise, second):
        assert torch.equal(torch.stack([source(LIKE) for _ in range(3)]), expected)


def test_noise_has_the_type_of_the_state_and_unit_variance() -> None:
    noise = KeyedNoise.of(["a"], "sampler", CPU)(torch.zeros(1, 4, 64, 64, dtype=torch.float64))
    assert noise.dtype == torch.float64
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)


def test_each_sample_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="2 generators, but noise is asked for a batch of 3"):
        KeyedNoise.of(["a", "b"], "sampler", CPU)(LIKE)


def test_inside_seeded_global_numbers_follow_from_the_keys() -> None:
    def numbers(*keys: str) -> Tensor:
        with seeded(keys):
            return torch.rand(4)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = numbers("a", "b")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(numbers("a", "b"), first)
    assert not torch.equal(numbers("a"), first)


def test_noise_that_is_drawn_elsewhere_arrives_where_it_is_used() -> None:
    like = torch.empty(2, 3, device="meta")
    with drawn_on(torch.device("cpu")):
        noise = KeyedNoise.of(["a", "b"], "start", torch.device("meta"))
    assert noise(like).device.type == "meta"
    assert {generator.device.type for generator in noise.generators} == {"cpu"}
    expected = KeyedNoise.of(["a", "b"], "start", torch.device("cpu"))(torch.empty(2, 3))
    with drawn_on(torch.device("cpu")):
        again = KeyedNoise.of(["a", "b"], "start", torch.device("meta"))
    assert torch.equal(again(torch.empty(2, 3)), expected)


def of_step(rank: int, world_size: int, batches: int = 5) -> StepDraws:
    return StepDraws.of_step(batches, rank=rank, world_size=world_size)


def test_several_processes_draw_what_one_draws_with_their_batches_together() -> None:
    whole = of_step(0, 1)
    times = [whole.of_all(torch.rand, 6) for _ in range(2)]
    noise = [whole.noise(6, CPU)(torch.zeros(6, 2, 2, 2)) for _ in range(2)]
    for processes in (2, 3):
        each = 6 // processes
        for rank in range(processes):
            own = slice(rank * each, (rank + 1) * each)
            part = of_step(rank, processes)
            assert all(torch.equal(part.of_all(torch.rand, each), drawn[own]) for drawn in times)
            assert all(torch.equal(part.noise(each, CPU)(torch.zeros(each, 2, 2, 2)), drawn[own]) for drawn in noise)
    assert not torch.equal(times[0], times[1]) and not torch.equal(noise[0], noise[1])


def test_steps_and_images_differ() -> None:
    def drawn(batches: int) -> Tensor:
        return of_step(0, 1, batches).noise(2, CPU)(torch.zeros(2, 8))

    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(*drawn(1))


def test_what_networks_draw_themselves_differs_between_processes() -> None:
    first, second = (of_step(rank, 2) and torch.rand(4) for rank in (0, 1))
    assert not torch.equal(first, second)


def test_outside_of_training_the_global_generator_draws() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3), torch.randn(3, 2)
    torch.manual_seed(0)
    draws = StepDraws()
    assert torch.equal(draws.of_all(torch.rand, 3), expected[0])
    assert torch.equal(draws.noise(3, CPU)(torch.zeros(3, 2)), expected[1])
