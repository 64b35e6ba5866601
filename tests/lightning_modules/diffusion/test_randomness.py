"""Noise that follows from keys, and can be drawn again."""

import pytest
import torch
from torch import Tensor

from lightning_modules.diffusion.randomness import KeyedNoise, drawn_on, seeded

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
