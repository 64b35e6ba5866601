from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.skipping.policy import SkipPolicy


def published() -> SkipPolicy:
    return SkipPolicy(hidden=None, norm="batch", decisions=None)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_policy_has_the_published_size_and_names() -> None:
    policy = published()
    assert count(policy) == 14_225_691
    assert count(policy.state_encoder) == 56_088
    convolutions = {f"state_encoder.{i}.{kind}" for i in (0, 3, 6, 9) for kind in ("weight", "bias")}
    norms = {f"state_encoder.{i}.{kind}" for i in (1, 4, 7, 10) for kind in ("weight", "bias")}
    gru = {f"gru.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    heads = {f"{head}.0.{kind}" for head in ("actor", "critic") for kind in ("weight", "bias")}
    assert {name for name, _ in policy.named_parameters()} == convolutions | norms | gru | heads


def test_extended_policy_keeps_the_layer_numbers_whatever_the_norm() -> None:
    for norm in ("none", "group", "batch", "batch_image"):
        policy = SkipPolicy(norm=norm)
        assert isinstance(policy.state_encoder[3], nn.Conv2d)
    assert count(SkipPolicy()) < 0.9e6


@pytest.mark.parametrize("decisions", [None, 5])
def test_replay_of_a_sequence_equals_its_steps(decisions: int | None) -> None:
    policy = SkipPolicy(channels=(4, 4), kernels=(5, 3), resize=16, hidden=8, decisions=decisions)
    observations = torch.randn(5, 3, 3, 16, 16)
    logits, values = policy.sequence(observations)
    memory = policy.initial_state(3, observations.device)
    for k in range(5):
        stepped, value, memory = policy.step(observations[k], memory, k)
        torch.testing.assert_close(stepped, logits[k])
        torch.testing.assert_close(value, values[k])


def test_the_memory_carries_gradients_back_to_the_first_decision() -> None:
    policy = SkipPolicy(channels=(4, 4), kernels=(5, 3), resize=16, hidden=8)
    observations = torch.randn(5, 2, 3, 16, 16, requires_grad=True)
    logits, _ = policy.sequence(observations)
    (gradient,) = torch.autograd.grad(logits[-1].square().sum(), observations)
    assert gradient[0].abs().max() > 0


def test_group_norm_decides_each_image_by_itself_and_batch_norm_does_not() -> None:
    torch.manual_seed(0)
    observation = torch.randn(4, 3, 16, 16)
    for norm, alone in (("group", True), ("batch", False)):
        policy = SkipPolicy(channels=(4, 4), kernels=(5, 3), resize=16, hidden=8, norm=norm).train()
        together, _, _ = policy.step(observation, policy.initial_state(4, observation.device), 0)
        single, _, _ = policy.step(observation[:1], policy.initial_state(1, observation.device), 0)
        assert torch.allclose(together[:1], single, atol=1e-6) == alone


def test_image_statistics_are_those_of_batch_norm_on_a_single_image() -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": (4, 4), "kernels": (5, 3), "resize": 16, "hidden": 8}
    policy, released = (SkipPolicy(**small, norm=norm) for norm in ("batch_image", "batch"))
    policy.load_state_dict(released.state_dict())  # the same names
    observation = torch.randn(4, 3, 16, 16)
    memory = policy.initial_state(4, observation.device)

    # In training it is batch norm itself.
    wanted = released.train().step(observation, memory, 0)[0]
    torch.testing.assert_close(policy.train().step(observation, memory, 0)[0], wanted, rtol=0, atol=0)

    # The released code tests image by image, in training mode.
    alone = torch.cat([released.step(observation[i : i + 1], memory[:1], 0)[0] for i in range(4)])
    together = policy.eval().step(observation, memory, 0)[0]
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(released.eval().step(observation, memory, 0)[0], alone, atol=1e-3)


def test_observation_is_the_sample_itself_at_its_own_size() -> None:
    policy = SkipPolicy(resize=32)
    x = torch.randn(2, 3, 32, 32)
    assert policy.observe(x) is x
    assert policy.observe(torch.randn(2, 3, 48, 40)).shape == (2, 3, 32, 32)


def test_too_many_decisions_for_the_index_embedding_are_refused() -> None:
    policy = SkipPolicy(channels=(4,), kernels=(3,), resize=8, hidden=4, decisions=3)
    with pytest.raises(ValueError, match="built for 3 decisions, but is asked for decision 4"):
        policy.sequence(torch.randn(4, 1, 3, 8, 8))


@pytest.mark.parametrize(("channels", "kernels"), [((4, 4), (5,)), ((4,), (4,))])
def test_layers_that_do_not_pair_up_are_refused(channels: tuple[int, ...], kernels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pair up"):
        SkipPolicy(channels=channels, kernels=kernels)
