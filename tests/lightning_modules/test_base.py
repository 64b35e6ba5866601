"""What the base promises every method: noise by key, padding, checkpoints, YODA as a slot."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError, read_checkpoint
from lightning_modules.config import load_method
from lightning_modules.diffusion.flow import RectifiedFlow
from lightning_modules.diffusion.parameterization import Clean, Epsilon, Noised
from lightning_modules.diffusion.randomness import stable_seed
from lightning_modules.diffusion.samplers import DDIM, Ancestral
from lightning_modules.diffusion.schedules import Cosine
from lightning_modules.diffusion.space import Residual
from lightning_modules.diffusion.vp import VP
from lightning_modules.diffusion.yoda import YODA
from lightning_modules.networks.attention_maps import Constant, Sobel
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.networks.unet_srdiff import SRDiffUNet
from lightning_modules.srdiff import SRDiff
from lightning_modules.super_resolver import pad_to_stride


def srdiff(region: YODA | None = None, **options: Any) -> SRDiff:
    torch.manual_seed(0)
    model = SRDiff(
        encoder=RRDBNet(4, 4, 2),
        network=options.pop("network", None) or SRDiffUNet(4, 8, (1, 2), 4, 2),
        process=VP(Cosine(10)),
        parameterization=options.pop("parameterization", Epsilon("index")),
        space=Residual(),
        sampler=options.pop("sampler", Ancestral(3)),
        region=region,
        norm="l1",
        freeze_encoder=False,
        encoder_loss=0.0,
        **options,
    )
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    return model.eval()


def batch(count: int = 2, height: int = 6, width: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(1)
    lr = torch.rand(count, 3, height, width, generator=generator) * 2 - 1
    hr = torch.rand(count, 3, 4 * height, 4 * width, generator=generator) * 2 - 1
    up = torch.nn.functional.interpolate(lr, scale_factor=4)
    return Batch(lr=lr, up=up, hr=hr, key=[f"set/{i}" for i in range(count)])


def only(images: Batch, index: int) -> Batch:
    return Batch(lr=images["lr"][index:][:1], up=images["up"][index:][:1], key=[images["key"][index]])


def test_an_image_does_not_depend_on_its_batch() -> None:
    model, images = srdiff(), batch()
    together = model.super_resolve(images)
    torch.testing.assert_close(model.super_resolve(only(images, 1)), together[1:], rtol=0, atol=1e-5)


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    model, images = srdiff(), batch()
    torch.manual_seed(1)
    first = model.super_resolve(images)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(model.super_resolve(images), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_and_seeds_decide_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = srdiff(), batch(1)
    first = model.super_resolve(images)
    assert not torch.equal(model.super_resolve({**images, "key": ["other"]}), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert not torch.equal(model.super_resolve(images), first)


def test_stable_seed_is_stable() -> None:
    assert stable_seed(0, "a", 1) == stable_seed(0, "a", 1) != stable_seed(0, "a", 2)


@pytest.mark.parametrize(
    ("stride", "scale", "lr", "padded"), [(8, 4, (5, 6), (6, 6)), (8, 2, (5, 3), (8, 4)), (4, 4, (5, 7), (5, 7))]
)
def test_padding_reaches_the_stride_and_no_further(
    stride: int, scale: int, lr: tuple[int, int], padded: tuple[int, int]
) -> None:
    images = Batch(lr=torch.rand(1, 3, *lr), up=torch.rand(1, 3, lr[0] * scale, lr[1] * scale), key=["a"])
    result = pad_to_stride(images, stride)
    assert result["lr"].shape[-2:] == padded
    assert result["up"].shape[-2:] == (padded[0] * scale, padded[1] * scale)
    assert torch.equal(result["up"][..., : lr[0] * scale, : lr[1] * scale], images["up"])


def test_any_size_is_enlarged_by_exactly_the_scale() -> None:
    assert srdiff().super_resolve(batch(1, 7, 3)).shape == (1, 3, 28, 12)


def test_tiles_bound_what_the_network_sees_and_show_no_seams() -> None:
    whole, tiles, images = srdiff(), srdiff(tile=32, overlap=16), batch(1, 17, 12)
    sides: list[int] = []
    tiles.network.register_forward_pre_hook(lambda _, given: sides.append(max(given[0].shape[-2:])))
    assert torch.equal(tiles.super_resolve(batch(1)), whole.super_resolve(batch(1)))
    sides.clear()
    result, reference = tiles.super_resolve(images), whole.super_resolve(images)
    assert max(sides) == 32 and len(sides) == 3 * 4 * 2  # three steps, 68 x 48 pixels
    assert result.shape == reference.shape
    assert 0 < (result - reference).abs().mean() < 0.2 * reference.std()


@pytest.mark.parametrize(("tile", "overlap"), [(31, 16), (32, 15), (32, 32)])
def test_tiles_that_do_not_fit_the_network_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"tile {tile} and overlap {overlap}: must be multiples of 2"):
        srdiff(tile=tile, overlap=overlap)


def test_prediction_of_a_large_image_recommends_tiles() -> None:
    model = srdiff()
    large = Batch(lr=torch.zeros(1, 3, 512, 513), up=torch.zeros(1, 1, 2048, 2052), key=["photo"])
    model.super_resolve = lambda *_: large["up"]  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"photo: 2052x2048 pixels at once .*--model.init_args.tile 512"):
        model.predict_step(large, 0)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 40), (3, 5), (9, 2)])
def test_an_image_below_what_the_network_needs_is_padded(height: int, width: int) -> None:
    model = srdiff(network=SRDiffUNet(4, 8, (1, 2, 2, 2), 4, 2))
    assert model.stride == 8 and model.network.smallest == 16
    result = model.super_resolve(batch(1, height, width))
    assert result.shape == (1, 3, 4 * height, 4 * width) and result.isfinite().all()


def test_an_image_that_cannot_be_enlarged_is_a_failure_of_its_own() -> None:
    model = srdiff(network=SRDiffUNet(4, 8, (1, 2, 2, 2), 4, 2))
    (key, reason) = model.predict_step(batch(1, 1, 1), 0)["failed"].popitem()
    assert key == "set/0" and "set/0: enlarged to 4x4 pixels, the image is smaller than the 8 pixels" in reason
    assert model.predict_step({**batch(1), "skip": True}, 0) == {}


def short_of_memory(model: SRDiff, pixels: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> list[int]:
    """Lets the network fail for inputs of more pixels; what it was given is in the list."""
    given: list[int] = []

    def look(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        given.append(arguments[0].shape[-2] * arguments[0].shape[-1])
        if given[-1] > pixels:
            raise error("DefaultCPUAllocator: can't allocate memory")

    model.network.register_forward_pre_hook(look)
    return given


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_what_does_not_fit_the_memory_is_tried_again_in_smaller_tiles(error: type[RuntimeError]) -> None:
    model, images = srdiff(), batch(1, 70, 50)
    given = short_of_memory(model, 128 * 128, error)
    with pytest.warns(UserWarning, match="set/0: 200x280 pixels (at once|in tiles of 256 pixels) do not fit"):
        result = model.predict_step(images, 0)["sr"]
    assert given[0] == 200 * 280 and given[1] == 256 * 200 and max(given[2:]) == 128 * 128
    assert torch.equal(result, srdiff(tile=128, overlap=16).super_resolve(images))
    assert model.tiles is None, "the next image is tried at once"


def test_what_fits_in_no_tiles_is_a_failure_and_other_errors_are_raised() -> None:
    model = srdiff()
    short_of_memory(model, 1)
    with pytest.warns(UserWarning, match="do not fit the memory"):
        assert "do not fit the memory, in small tiles neither" in model.predict_step(batch(1), 0)["failed"]["set/0"]
    model.network.forward = lambda *_, **__: torch.zeros(2) @ torch.zeros(3)
    model.network._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        model.predict_step(batch(1), 0)


def test_a_batch_of_the_wrong_kind_is_one_clear_error(tmp_path: Path) -> None:
    model, good = srdiff(), batch(1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lr": good["lr"].permute(0, 2, 3, 1)}, r"lr: expected floats \[B,3,H,W\] in \[-1, 1\], got \[1, 6, 5, 3\]"),
        ({"lr": good["lr"][0]}, r"lr: expected floats \[B,3,H,W\].*got \[3, 6, 5\].*make_batch makes a batch"),
        ({"up": good["up"].to(torch.uint8)}, r"up: expected floats .* torch.uint8"),
        ({"up": good["up"][..., :-1]}, "set/0: 19x24 is no whole multiple of 5x6"),
        ({"key": ["a", "b"]}, "lr, up and key hold 1, 1 and 2 images"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            model.super_resolve({**good, **change})  # type: ignore[typeddict-item]
    model.trained_scale = 2
    with pytest.raises(
        ValueError, match=r"set/0: the batch enlarges x4, but SRDiff was trained for x2: make the batch"
    ):
        model.super_resolve(good)


def test_an_image_below_the_stride_is_named() -> None:
    model = srdiff()
    model.network.stride = 32
    with pytest.raises(ValueError, match=r"set/0.*smaller than the 32 pixels"):
        model.super_resolve(batch(1, 2, 9))


# YODA in its slot.


@pytest.mark.parametrize("sampler", [Ancestral(4), DDIM(3)])
def test_a_full_region_equals_the_host_bit_for_bit(sampler: Ancestral) -> None:
    host, yoda, images = srdiff(sampler=sampler), srdiff(YODA(Constant(0.75), 0.25), sampler=sampler), batch()
    assert torch.equal(host.super_resolve(images), yoda.super_resolve(images))
    losses = []
    for model in (host, yoda):
        torch.manual_seed(3)
        result = model.training_step(images, 0)
        assert isinstance(result, dict)
        losses.append(result["loss"])
    assert torch.equal(*losses)


def test_waiting_pixels_end_as_the_enlarged_image() -> None:
    images = batch(1)
    images["attention"] = torch.zeros(1, 1, *images["up"].shape[-2:])
    images["attention"][..., :10] = 1
    model = srdiff(YODA(Sobel(), lower_bound=0.05), sampler=DDIM(4))  # the last of four steps begins at t = 0.25
    sr = model.super_resolve(images)
    assert torch.equal(sr[..., 10:], images["up"][..., 10:])
    assert not torch.equal(sr[..., :10], images["up"][..., :10])


def test_the_loss_of_waiting_pixels_does_not_count() -> None:
    model, images = srdiff(YODA(Constant(0.0), lower_bound=0.1)), batch(1)
    result = model.process.sample_t
    model.process.sample_t = lambda n: torch.ones(n, dtype=torch.float64)  # type: ignore[method-assign]
    step = model.training_step(images, 0)
    assert isinstance(step, dict) and step["loss"] == 0
    model.process.sample_t = result  # type: ignore[method-assign]


def test_active_norm_is_the_mean_over_active_pixels() -> None:
    loss, mask = torch.rand(2, 3, 4, 4), (torch.rand(2, 1, 4, 4) > 0.5).float()
    region = YODA(Constant(1.0), mask_norm="active")
    expected = torch.stack([(loss[i] * mask[i]).sum() / (3 * mask[i].sum()) for i in range(2)]).mean()
    torch.testing.assert_close(region.reduce(loss, mask), expected)
    torch.testing.assert_close(YODA(Constant(1.0)).reduce(loss, mask), (loss * mask).mean())


def test_an_image_without_active_pixels_loses_nothing() -> None:
    loss, mask = torch.ones(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[1] = 1
    assert YODA(Constant(1.0), mask_norm="active").reduce(loss, mask) == 0.5


def test_exact_sums_of_attention_and_lower_bound_diffuse() -> None:
    region, share = YODA(Constant(1.0), lower_bound=0.1), torch.tensor([0.5], dtype=torch.float64)
    for attention, active in ((0.4, 1), (0.4 + 1e-5, 1), (0.4 - 1e-5, 0)):
        assert region.mask(torch.full((1, 1, 1, 1), attention), share).item() == active


class TwoPixels(nn.Module):
    """A map of two pixels, whatever the image."""

    def forward(self, lr: Tensor) -> Tensor:
        return torch.tensor([[[[0.0, 1.0]]]])


def test_maps_are_brought_to_the_states_grid_bilinearly() -> None:
    found = YODA(TwoPixels()).attend(torch.zeros(1, 3, 2, 4), size=(4, 8), factor=2)
    assert found.dtype == torch.float64 and found[0, 0].tolist() == [[0.0, 0.25, 0.75, 1.0]] * 2


def test_composite_input_holds_the_noised_low_resolution_image() -> None:
    process, t = VP(Cosine(10)), torch.tensor([0.4], dtype=torch.float64)
    x_t, x0, anchor, noise = torch.rand(4, 1, 3, 4, 4)
    filled = process.diffuse(x0=anchor, anchor=anchor, t=t, noise=noise)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    noised = Noised(x_t=x_t, x0=x0, anchor=anchor, noise=noise, t=t)
    shown = YODA(Constant(1.0), input_mode="composite").training_input(process, noised, mask)
    assert torch.equal(shown[..., :2], filled[..., :2]) and torch.equal(shown[..., 2:], x_t[..., 2:])


@pytest.mark.parametrize("bound", [0.0, -0.1, 1.5])
def test_a_lower_bound_outside_its_range_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="lower_bound"):
        YODA(Constant(1.0), lower_bound=bound)


def test_preview_shows_the_map_and_its_masks() -> None:
    panels = srdiff(YODA(Sobel(), 0.1)).preview(batch())
    assert list(panels) == ["attention", "mask t=0.75", "mask t=0.5", "mask t=0.25"]
    assert all(panel.shape == (2, 1, 24, 20) for panel in panels.values())


def test_a_regions_noise_is_its_own() -> None:
    _, _, randn, fill = srdiff(YODA(Sobel(), 0.1)).prepare(batch())
    like = torch.empty(2, 3, 4, 4)
    assert fill is not None and not torch.equal(randn(like), fill.randn(like))


def test_a_fork_of_a_fill_draws_the_same_noise_and_leaves_the_first_alone() -> None:
    _, _, _, fill = srdiff(YODA(Sobel(), 0.1)).prepare(batch())
    assert fill is not None
    fork, like = fill.fork(), torch.empty(2, 3, 4, 4)
    first = fork.randn(like)
    assert torch.equal(first, fill.randn(like))
    assert not torch.equal(first, fill.randn(like))


# Training.


def test_training_noises_the_spaces_target_towards_the_anchor() -> None:
    model, images = srdiff(), batch()
    model.space.encode_target = lambda image, up, randn: torch.full_like(image, 0.25)  # type: ignore[method-assign]
    model.process = RectifiedFlow(from_anchor=True, sigma=0.5)
    model.process.noise = lambda like, randn=torch.randn_like: torch.full_like(like, 3.0)  # type: ignore[method-assign]
    anchor = torch.full_like(images["up"], -1.0)
    noised = model.noised(images, anchor)
    t = noised.t.view(-1, 1, 1, 1).float()
    torch.testing.assert_close(noised.x0, torch.full_like(anchor, 0.25))
    torch.testing.assert_close(noised.x_t, ((1 - t) * 0.25 - t + 0.5 * t * 3.0).expand_as(anchor))


def test_the_network_is_trained_on_what_the_region_shows() -> None:
    model, images = srdiff(YODA(Constant(0.5), 0.1)), batch()
    shown, seen = torch.full_like(images["up"], 0.5), []
    model.region.training_input = lambda process, noised, mask: shown  # type: ignore[method-assign, union-attr]
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.training_losses(images)
    assert len(seen) == 1 and torch.equal(seen[0], shown)


@pytest.mark.parametrize(("share", "active"), [(0.7, 0.0), (0.5, 1.0)])
def test_the_training_mask_goes_by_the_share_of_the_run(share: float, active: float) -> None:
    model = srdiff(YODA(Constant(0.5), 0.1))
    model.process.run_share = lambda t: torch.full_like(t, share)  # type: ignore[method-assign]
    mask = model.training_losses(batch()).mask
    assert mask is not None and (mask == active).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_loss_is_the_weighted_distance_to_the_target(norm: Literal["l1", "l2"]) -> None:
    model = srdiff()
    model.norm = norm
    model.parameterization.weight = lambda process, t: 2 * t  # type: ignore[method-assign]
    noise, output = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.5, 1.0], dtype=torch.float64)
    noised = Noised(x_t=noise, x0=noise, anchor=noise, noise=noise, t=t)
    distance = (output - noise).abs() if norm == "l1" else (output - noise) ** 2
    wanted = (distance * torch.tensor([1.0, 2.0]).view(-1, 1, 1, 1)).mean()
    torch.testing.assert_close(model.diffusion_loss(noised, output, None), wanted)


def test_all_losses_are_minimized() -> None:
    model = srdiff()
    model.losses = lambda batch, noised, output: {"more": torch.tensor(5.0)}  # type: ignore[method-assign]
    torch.manual_seed(0)
    with_more = model.training_step(batch(), 0)
    torch.manual_seed(0)
    loss = model.training_losses(batch()).losses["loss"]
    assert isinstance(with_more, dict)
    torch.testing.assert_close(with_more["loss"], loss + 5)


# Weights.


def test_frozen_encoder_stays_in_the_checkpoint_and_out_of_training() -> None:
    model = srdiff()
    model.encoder.requires_grad_(False)
    assert not model.frozen_keys()
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.network.parameters()}


def test_weights_must_fit_exactly() -> None:
    model = srdiff()
    state = dict(model.state_dict())
    state["network.surplus"] = state.pop("network.final_conv.1.bias")
    with pytest.raises(ValueError, match=r"missing network.final_conv.1.bias; unknown network.surplus"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match="size mismatch"):
        model.load_state_dict({**model.state_dict(), "network.final_conv.1.bias": torch.zeros(5)})


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nonexistent/pwned").touch, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no checkpoint"),
        (b"not a checkpoint at all", "no checkpoint|not a checkpoint"),
        (Evil(), "could execute code"),
        (torch.zeros(3), "holds a Tensor"),
        ({"state_dict": {}}, "was not written by a training run"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_message(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{path}.*({message})"):
        load_method(path)


def test_a_truncated_checkpoint_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": torch.rand(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_clean_and_epsilon_agree_on_a_perfect_network() -> None:
    process, x0, noise = VP(Cosine(10)), torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t, anchor = torch.tensor([0.3, 0.8], dtype=torch.float64), torch.zeros(2, 3, 4, 4)
    x_t = process.diffuse(x0=x0, anchor=anchor, t=t, noise=noise)
    for parameterization, output in ((Epsilon("index"), noise), (Clean("index"), x0)):
        estimate: Tensor = parameterization.x0(process, output, x_t=x_t, anchor=anchor, t=t)
        torch.testing.assert_close(estimate, x0, rtol=0, atol=1e-5)
