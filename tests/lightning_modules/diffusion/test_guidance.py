from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.guidance import (
    ClassifierFreeGuidance,
    Guidance,
    SelfAttentionGuidance,
    received_attention,
    received_by,
    self_attention,
)
from lightning_modules.diffusion.parameterization import Clean, Epsilon
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.vp import VP, DomainShift
from lightning_modules.networks.unet_adm import ADMUNet
from lightning_modules.networks.unet_sr3 import SR3UNet
from lightning_modules.networks.unet_srdiff import SRDiffUNet
from lightning_modules.networks.unet_swin import SwinBlock, UNetSwin


class Attention(nn.Module):
    """Receives the attention that it was told to."""

    def __init__(self, received: Tensor) -> None:
        super().__init__()
        self.received = received

    def forward(self, x: Tensor) -> Tensor:
        return x

    def received_attention(self, x: Tensor) -> Tensor:
        return self.received.expand(x.shape[0], -1, -1)


class Network(nn.Module):
    """Writes a smooth function of its input, and remembers its inputs."""

    def __init__(self, received: Tensor) -> None:
        super().__init__()
        self.block = nn.Sequential(Attention(received))
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, label: Tensor, *, shown: Tensor | None = None) -> Tensor:
        self.inputs.append(x)
        return torch.sin(3 * self.block(x)) + (0.2 if shown is None else shown)


LEFT = torch.tensor([[1.5, 0.5], [1.5, 0.5]], dtype=torch.float64)
PROCESS = VP(Cosine(50))


def setting(received: Tensor = LEFT, **changes: Any) -> tuple[Network, Denoiser, Tensor, Tensor]:
    """A network that writes the noise, its denoiser without bound or guidance, a state and its time."""
    network = Network(received)
    fields: dict[str, Any] = {
        "network": network,
        "process": PROCESS,
        "parameterization": Epsilon("time"),
        "anchor": torch.zeros(2, 3, 12, 12),
    }
    x_t = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return network, Denoiser(**{**fields, **changes}), x_t, torch.tensor([0.5, 0.8], dtype=torch.float64)


def guided(denoiser: Denoiser, *guidance: Guidance) -> Denoiser:
    return replace(denoiser, guidance=guidance)


class Times(nn.Module):
    """Multiplies its input by what it is shown."""

    def forward(self, x: Tensor, label: Tensor, *, factor: Tensor) -> Tensor:
        return factor * x


def sag(scale: float = 0.7, **changes: Any) -> SelfAttentionGuidance:
    return SelfAttentionGuidance("block.0", scale, **{"kernel": 5, "sigma": 1.5, **changes})


@pytest.mark.parametrize("clip", [False, True])
def test_equals_the_rule_on_the_noise_with_and_without_clamping(clip: bool) -> None:
    bound: Callable[[Tensor], Tensor] = (lambda x: x.clamp(-1, 1)) if clip else (lambda x: x)
    network, denoiser, x_t, t = setting(bound=bound)
    steered = guided(denoiser, sag())(x_t, t)

    # The paper's algorithm, written on the noise.
    alpha, std = expand(PROCESS.alpha(t), x_t), expand(PROCESS.std(t), x_t)
    e = network(x_t, t)
    x0 = bound((x_t - std * e) / alpha)
    mask = torch.zeros_like(x_t)
    mask[..., :6] = 1
    offsets = torch.arange(5, dtype=torch.float64) - 2
    taps = torch.exp(-((offsets / 1.5) ** 2) / 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    padded = F.pad(x0, (2, 2, 2, 2), mode="reflect")
    blurred = F.conv2d(F.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3)
    degraded = mask * blurred + (1 - mask) * x0
    again = network(alpha * degraded + std * e, t)
    expected = bound((x_t - std * (e + 0.7 * (e - again))) / alpha)
    torch.testing.assert_close(steered, expected, rtol=0, atol=1e-9)
    assert (denoiser(x_t, t) - expected).abs().max() > 0.01


def test_scale_zero_is_the_denoiser_itself() -> None:
    network, denoiser, x_t, t = setting()
    steered = guided(denoiser, sag(0.0))(x_t, t)
    assert len(network.inputs) == 1
    assert torch.equal(steered, denoiser(x_t, t))


def test_an_empty_mask_changes_nothing() -> None:
    network, denoiser, x_t, t = setting(torch.full((2, 2), 0.9, dtype=torch.float64))
    torch.testing.assert_close(guided(denoiser, sag())(x_t, t), denoiser(x_t, t), rtol=0, atol=1e-12)
    # The second state is the first one, then.
    torch.testing.assert_close(network.inputs[1], network.inputs[0], rtol=0, atol=1e-12)


def test_a_linear_network_is_moved_by_what_the_blur_took_away() -> None:
    share = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    _, denoiser, x_t, t = setting(network=Times(), parameterization=Clean("time"), condition={"factor": share})
    guidance = SelfAttentionGuidance(scale=0.5, mask="uniform", kernel=5, sigma=1.5)
    x0 = share * x_t
    blurred = guidance.degrade(x0, [])
    again = share * (x_t + expand(PROCESS.alpha(t), x_t) * (blurred - x0))
    steered = guided(denoiser, guidance)(x_t, t)
    torch.testing.assert_close(steered, x0 + 0.5 * (blurred - again), rtol=0, atol=1e-12)


def test_it_acts_in_its_range_of_times_only_and_costs_nothing_outside() -> None:
    network, denoiser, x_t, t = setting()
    plain = denoiser(x_t, t)
    everywhere = guided(denoiser, sag())(x_t, t)
    early = guided(denoiser, sag(t_range=(0.6, 1.0)))(x_t, t)
    assert torch.equal(early[0], plain[0]) and torch.equal(early[1], everywhere[1])
    network.inputs.clear()
    assert torch.equal(guided(denoiser, sag(t_range=(0.0, 0.4)))(x_t, t), plain)
    assert len(network.inputs) == 1


def test_rows_go_with_their_conditions() -> None:
    class Anchored(VP):
        def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
            return super().mean(x0=x0, anchor=anchor, t=t) + 0.1 * anchor

    shown = torch.tensor([0.1, -0.4], dtype=torch.float64).view(2, 1, 1, 1)
    _, denoiser, x_t, t = setting(
        process=Anchored(Cosine(50)),
        parameterization=Clean("time"),
        anchor=torch.randn(2, 3, 12, 12, dtype=torch.float64),
        condition={"shown": shown},
    )
    steered, row = guided(denoiser, sag()), torch.tensor([1])
    torch.testing.assert_close(steered.select(row)(x_t[row], t[row]), steered(x_t, t)[row], rtol=0, atol=1e-12)


def test_the_second_state_stays_on_a_process_that_shifts_towards_its_anchor() -> None:
    class Shifting(VP):
        def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
            return super().mean(x0=x0 + expand(t, x0) * (anchor - x0), anchor=anchor, t=t)

    process, anchor = Shifting(Cosine(50)), torch.ones(2, 3, 12, 12, dtype=torch.float64)
    network, denoiser, x_t, t = setting(process=process, anchor=anchor)
    guidance = sag()
    guided(denoiser, guidance)(x_t, t)
    x0 = denoiser(x_t, t)
    noise = (x_t - process.mean(x0=x0, anchor=anchor, t=t)) / expand(process.std(t), x_t)
    degraded = guidance.degrade(x0, [LEFT.expand(2, -1, -1)])
    expected = process.diffuse(x0=degraded, anchor=anchor, t=t, noise=noise)
    torch.testing.assert_close(network.inputs[1], expected, rtol=0, atol=1e-9)


def test_with_classifier_free_guidance_it_reads_the_unconditional_branch() -> None:
    condition = {"shown": torch.tensor([0.1, -0.4], dtype=torch.float64).view(2, 1, 1, 1)}
    _, denoiser, x_t, t = setting(condition=condition, null_condition={})
    unconditional = denoiser.unconditional()
    free = ClassifierFreeGuidance(3.0)
    combined = guided(denoiser, free, sag(branch="unconditional"))(x_t, t)
    alone = guided(unconditional, sag())(x_t, t) - unconditional(x_t, t)
    torch.testing.assert_close(combined, guided(denoiser, free)(x_t, t) + alone, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"ran 2 times in one estimate.*branch: unconditional"):
        guided(denoiser, free, sag())(x_t, t)


def test_classifier_free_guidance_extrapolates() -> None:
    factors = torch.tensor([[0.3, 0.3], [0.0, 0.0]], dtype=torch.float64).view(2, 2, 1, 1, 1)
    condition, null_condition = ({"factor": factor} for factor in factors)
    _, denoiser, x_t, t = setting(
        network=Times(), parameterization=Clean("time"), condition=condition, null_condition=null_condition
    )
    evaluated: list[Tensor] = []
    denoiser.network.register_forward_hook(lambda module, inputs, output: evaluated.append(output))

    def at(scale: float) -> Tensor:
        return guided(denoiser, ClassifierFreeGuidance(scale))(x_t, t)

    torch.testing.assert_close(at(2.5), 2.5 * denoiser(x_t, t))
    assert at(0.0).abs().max() == 0
    evaluated.clear()
    assert torch.equal(at(1.0), denoiser(x_t, t)) and len(evaluated) == 2


def test_selected_samples_get_the_rows_of_the_whole_guided_estimate() -> None:
    condition = {"shown": torch.tensor([0.1, -0.4, 0.7], dtype=torch.float64).view(3, 1, 1, 1)}
    null_condition = {"shown": torch.tensor([-0.2, 0.3, 0.5], dtype=torch.float64).view(3, 1, 1, 1)}
    process = DomainShift(Cosine(50), shift_steps=50)
    x_t, anchor = torch.randn(2, 3, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.5, 0.8, 0.3], dtype=torch.float64)
    _, denoiser, _, _ = setting(
        process=process,
        anchor=anchor,
        condition=condition,
        null_condition=null_condition,
        guidance=(ClassifierFreeGuidance(3.0), sag(branch="unconditional", t_range=(0.4, 1.0))),
        bound=lambda x0: x0.clamp(-1.5, 1.5),
    )
    whole = denoiser(x_t, t)
    for rows in ([2, 0], [1], [0, 1, 2]):
        some = torch.tensor(rows)
        torch.testing.assert_close(denoiser.select(some)(x_t[some], t[some]), whole[some], rtol=0, atol=1e-12)
    # Each of what goes with the rows matters.
    some, others = torch.tensor([0]), torch.tensor([1])
    for field in ("anchor", "condition", "null_condition"):
        mixed = replace(denoiser.select(some), **{field: getattr(denoiser.select(others), field)})
        assert (mixed(x_t[some], t[some]) - whole[some]).abs().max() > 1e-3


@pytest.mark.parametrize("guidance", [ClassifierFreeGuidance(2.0), sag(branch="unconditional")])
def test_a_method_without_a_null_condition_is_refused(guidance: Guidance) -> None:
    network, _, _, _ = setting()
    guidance.check(network, null_condition=True)
    with pytest.raises(ValueError, match="null condition"):
        guidance.check(network, null_condition=False)


def test_a_kernel_that_the_border_cannot_reflect_is_refused() -> None:
    _, denoiser, x_t, t = setting()
    with pytest.raises(ValueError, match=r"blur kernel of 31 .* 12x12: set kernel to at most 23"):
        guided(denoiser, sag(kernel=31))(x_t, t)
    with pytest.raises(ValueError, match="odd side, got kernel: 4"):
        sag(kernel=4)


def sr3() -> SR3UNet:
    return SR3UNet(inner_channel=8, channel_mults=[1, 2], attn_res=[8], res_blocks=1, norm_groups=4, image_size=16)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no self-attention at layer: middle; it has .*mid\.0\.attn"):
        SelfAttentionGuidance("middle").check(sr3(), null_condition=False)
    with pytest.raises(ValueError, match="no self-attention at layer: None"):
        SelfAttentionGuidance().check(setting()[0], null_condition=False)
    SelfAttentionGuidance("downs.3.attn").check(sr3(), null_condition=False)


@pytest.mark.parametrize("size", [32, 64])
def test_networks_name_their_innermost_attention(size: int) -> None:
    for network in (sr3(), UNetSwin(), ADMUNet(img_resolution=size, model_channels=16, channels_per_head=16)):
        SelfAttentionGuidance().check(network, null_condition=False)


def test_a_network_without_softmax_attention_is_offered_the_uniform_mask() -> None:
    network = SRDiffUNet(4, 8, [1, 2], 4, 3)
    with pytest.raises(ValueError, match=r"SRDiffUNet has no softmax.*mask: uniform"):
        SelfAttentionGuidance("mid_attn").check(network, null_condition=False)
    SelfAttentionGuidance(mask="uniform").check(network, null_condition=False)


def test_received_attention_averages_to_one() -> None:
    weights = torch.rand(2, 3, 5, 5).softmax(-1)
    received = received_attention(weights)
    torch.testing.assert_close(received.mean(dim=1), torch.ones(2))
    torch.testing.assert_close(received[0, 2], weights[0, :, :, 2].sum() / 3)


def attended(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> list[Tensor]:
    """Softmax weights `[...,queries,keys]` of every fused attention that `run` calls."""
    found, fused = [], F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        found.append((logits if attn_mask is None else logits + attn_mask).softmax(-1))
        return fused(query, key, value, attn_mask=attn_mask, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        run()
    return found


@pytest.mark.parametrize("network", ["sr3", "adm"])
def test_networks_report_what_their_attention_really_did(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, label = torch.randn(2, 3, 16, 24), torch.tensor([0.3, 0.6])
    if network == "sr3":
        model: nn.Module = sr3().eval()
        run, path = lambda: model(x, label, image=x), "mid.0.attn"
    else:
        model = ADMUNet(
            img_resolution=16,
            model_channels=16,
            channel_mult=[1, 2],
            num_blocks=1,
            attn_resolutions=[8],
            channels_per_head=8,
        ).eval()
        run, path = lambda: model(x, label), next(name for name, _ in recordable(model))
    with received_by(self_attention(model, path)) as maps:
        weights = attended(monkeypatch, run)
    assert len(maps) == 1
    expected = [w.mean(1).sum(1) for w in weights if w.shape[-1] == maps[0][0].numel()]
    assert any(torch.allclose(maps[0].flatten(1), other, atol=1e-5) for other in expected)
    torch.testing.assert_close(maps[0].mean(dim=(1, 2)), torch.ones(2))


def recordable(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if hasattr(module, "received_attention")]


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_report_their_attention_in_the_place_of_their_pixels(
    shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = UNetSwin(
        model_channels=8, channel_mult=(1, 1), size=16, swin_width=16, head_channels=8, window=4, norm_groups=4
    )
    block = next(
        module for module in network.modules() if isinstance(module, SwinBlock) and (module.shift > 0) == (shift > 0)
    )
    x = torch.randn(2, 16, 8, 12)
    with received_by(block) as maps:
        (weights,) = attended(monkeypatch, lambda: block(x))
    received = weights.view(2, 6, 2, 16, 16).mean(2).sum(2).view(2, 6, 4, 4)  # [B, window, row, column]
    expected = torch.empty(2, 8, 12)
    for window in range(6):
        row, column = divmod(window, 3)
        expected[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = received[:, window]
    expected = expected.roll((block.shift, block.shift), dims=(1, 2))
    torch.testing.assert_close(maps[0], expected)


def test_layers_are_left_as_they_were() -> None:
    network, denoiser, x_t, t = setting()
    guided(denoiser, sag())(x_t, t)
    assert not network.block[0]._forward_hooks
    with pytest.raises(RuntimeError, match="broken"), received_by(network.block[0]):
        raise RuntimeError("broken")
    assert not network.block[0]._forward_hooks


def stable_diffusion_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"


def test_a_diffusers_layer_is_recorded_through_its_processor_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    network = stable_diffusion_unet()
    layer: Any = self_attention(network, MIDDLE)
    processor, x, text = layer.processor, torch.randn(2, 4, 8, 16), torch.randn(2, 3, 8)

    def run() -> Tensor:
        result: Tensor = network(x, torch.tensor([5, 300]), text).sample
        return result

    plain = run()
    with received_by(layer) as maps:
        recorded: list[Tensor] = []
        weights = attended(monkeypatch, lambda: recorded.append(run()))
    assert torch.equal(recorded[0], plain) and layer.processor is processor
    assert maps[0].shape == (2, 32)
    assert any(w.shape[-2:] == (32, 32) and torch.allclose(w.mean(1).sum(1), maps[0], atol=1e-5) for w in weights)
    with pytest.raises(RuntimeError, match="broken"), received_by(layer):
        raise RuntimeError("broken")
    assert layer.processor is processor


def test_tokens_of_a_wide_latent_are_folded_into_its_shape() -> None:
    guidance = SelfAttentionGuidance(MIDDLE)
    received = torch.zeros(1, 32)
    received[0, 8 + 3] = 2.0  # second row, fourth of eight columns
    mask = guidance.select(received, torch.zeros(1, 4, 8, 16))
    assert mask.sum() == 4 and mask[0, 0, 2:4, 6:8].all()


def test_cross_attention_is_not_offered() -> None:
    with pytest.raises(ValueError, match="attn1") as refused:
        self_attention(stable_diffusion_unet(), "elsewhere")
    assert "attn2" not in str(refused.value)


def test_processes_without_tables_are_guided_too() -> None:
    class Plain(Process):
        def mean(self, *, x0: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
            return x0

        def std(self, t: Tensor) -> Tensor:
            return 5 * t

        def kept_and_fresh(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            return 0 * s, self.std(s)

        def grid(self, steps: int) -> Tensor:
            return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    _, denoiser, x_t, t = setting(process=Plain(), parameterization=Clean("time"))
    assert (guided(denoiser, sag())(x_t, t) - denoiser(x_t, t)).abs().max() > 0
