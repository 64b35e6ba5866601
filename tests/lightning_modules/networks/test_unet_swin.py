import pytest
import torch

from lightning_modules.networks.unet_swin import UNetSwin, partition, shift_mask, unpartition

TINY = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "size": 16, "swin_width": 32}
TINY |= {"head_channels": 16, "window": 4}


@pytest.mark.parametrize("halvings,parameters", [(0, 118_593_583), (1, 118_640_431)])
def test_published_size(halvings: int, parameters: int) -> None:
    with torch.device("meta"):
        network = UNetSwin(image_halvings=halvings)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.stride == 64


def test_key_names_are_the_published_ones() -> None:
    keys = UNetSwin(**TINY, image_halvings=1).state_dict()
    for key in (
        "time_embed.0.weight",
        "feature_extractor.2.op.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.emb_layers.1.weight",
        "input_blocks.1.1.patch_embed.proj.weight",
        "input_blocks.1.1.blocks.1.attn.relative_position_bias_table",
        "input_blocks.2.0.op.weight",
        "middle_block.1.blocks.0.mlp.fc2.bias",
        "output_blocks.1.1.conv.weight",
        "out.2.bias",
    ):
        assert key in keys


def test_windows_can_be_put_together_again() -> None:
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(unpartition(partition(x, 4), 4, 8, 12), x)


def test_swin_mask_separates_what_wrapped_around_in_either_direction() -> None:
    mask = shift_mask(8, 8, window=4, shift=2, kind="swin")
    rolled = partition(torch.arange(64.0).view(1, 1, 8, 8).roll((-2, -2), (2, 3)), 4)[0, :, :, 0].long()
    rows, columns = rolled // 8, rolled % 8
    near = ((rows[:, :, None] - rows[:, None]).abs() < 4) & ((columns[:, :, None] - columns[:, None]).abs() < 4)
    assert torch.equal(mask == 0, near)


def test_published_mask_differs_from_swins() -> None:
    published = shift_mask(8, 8, window=4, shift=2, kind="published")
    assert published[:2].eq(0).all() and published[2:].ne(0).any()
    assert not torch.equal(published, shift_mask(8, 8, window=4, shift=2, kind="swin"))


def test_a_level_of_one_window_is_never_shifted() -> None:
    network = UNetSwin(**{**TINY, "window": 8})
    assert network.stride == 16
    assert [block.shift for block in network.middle_block[1].blocks] == [0, 0]
    assert [block.shift for block in network.input_blocks[1][1].blocks] == [0, 4]


def test_zero_output() -> None:
    network = UNetSwin(**TINY, zero_output=True)
    x = torch.randn(1, 3, 16, 16)
    assert network(x, torch.ones(1), image=x).abs().max() == 0


def test_an_image_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="image_halvings"):
        UNetSwin(**TINY)(torch.zeros(1, 3, 16, 16), torch.zeros(1), image=torch.zeros(1, 3, 32, 32))


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="head_channels 24"):
        UNetSwin(**{**TINY, "head_channels": 24})
