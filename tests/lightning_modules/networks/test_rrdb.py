"""The RRDB network: published sizes, scales, features. Its values are compared in tests/goldens/srdiff."""

import pytest
import torch

from lightning_modules.networks.rrdb import RRDBNet


@pytest.mark.parametrize(
    ("arguments", "count"),
    [((8, 32, 8), 1_488_003), ((4, 32, 8), 1_478_755), ((4, 64, 17), 12_381_443), ((4, 64, 23, 32), 16_697_987)],
)
def test_published_sizes(arguments: tuple[int, ...], count: int) -> None:
    assert sum(parameter.numel() for parameter in RRDBNet(*arguments).parameters()) == count


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_enlarges_by_its_scale_within_range(scale: int) -> None:
    torch.manual_seed(0)
    network = RRDBNet(scale, nf=8, nb=2)
    torch.nn.init.normal_(network.conv_last.weight, std=10)
    image = network(torch.rand(2, 3, 5, 7) * 2 - 1)
    assert image.shape == (2, 3, 5 * scale, 7 * scale)
    assert image.min() == -1
    assert image.max() == 1


def test_features_are_one_map_a_block_and_the_trunk() -> None:
    network = RRDBNet(4, nf=8, nb=3, gc=6)
    lr = torch.rand(1, 3, 6, 5)
    features = network.features(lr)
    assert [tuple(feature.shape) for feature in features] == [(1, 8, 6, 5)] * 4
    trunk = network.conv_first((lr + 1) / 2) + network.trunk_conv(features[-2])
    torch.testing.assert_close(features[-1], trunk)
    assert network.RRDB_trunk[0].RDB1.conv1.out_channels == 6


def test_other_scales_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scale=3"):
        RRDBNet(3)
