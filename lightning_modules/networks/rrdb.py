"""The RRDB network of ESRGAN: SRDiff's frozen encoder, DoSSR's restorer, and an L1 super-resolver by itself."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

RESIDUAL_SCALE = 0.2
NEGATIVE_SLOPE = 0.2


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which sees the block's input and all earlier outputs (ESRGAN, arXiv:1809.00219).

    Args:
        nf: Channels of input and output.
        gc: Channels that each of the first four convolutions adds.
    """

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(nf, gc, 3, padding=1)
        self.conv2 = nn.Conv2d(nf + gc, gc, 3, padding=1)
        self.conv3 = nn.Conv2d(nf + 2 * gc, gc, 3, padding=1)
        self.conv4 = nn.Conv2d(nf + 3 * gc, gc, 3, padding=1)
        self.conv5 = nn.Conv2d(nf + 4 * gc, nf, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,nf,h,w]` to the same shape."""
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, functional.leaky_relu(conv(seen), NEGATIVE_SLOPE)], dim=1)
        return torch.add(x, self.conv5(seen), alpha=RESIDUAL_SCALE)


class RRDB(nn.Module):
    """Three dense blocks and a residual connection around them; see `ResidualDenseBlock`."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        self.RDB1 = ResidualDenseBlock(nf, gc)
        self.RDB2 = ResidualDenseBlock(nf, gc)
        self.RDB3 = ResidualDenseBlock(nf, gc)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,nf,h,w]` to the same shape."""
        return torch.add(x, self.RDB3(self.RDB2(self.RDB1(x))), alpha=RESIDUAL_SCALE)


class RRDBNet(nn.Module):
    """Enlarges an image by 2, 4 or 8, or returns its features (section 4 of SRDiff, arXiv:2104.14951).

    SRDiff's published models have 8 blocks of 32 channels, at scales 4 and 8, and these key names. Scale 2, with a
    single enlarging convolution, is ours: the reference enlarges by 4 where 2 is asked for.

    With `nf=64, nb=23, gc=32` it is the x4 network of Real-ESRGAN and RealESRNet.

    Args:
        scale: 2, 4 or 8.
        nf: Channels of every feature map.
        nb: Number of RRDB blocks.
        gc: Channels that each dense convolution adds; None for half of `nf`.

    Attributes:
        stride: Images of any height and width are accepted.

    Raises:
        ValueError: `scale` is not 2, 4 or 8.
    """

    stride = 1

    def __init__(self, scale: int = 4, nf: int = 32, nb: int = 8, gc: int | None = None) -> None:
        super().__init__()
        if scale not in (2, 4, 8):
            raise ValueError(f"RRDBNet enlarges by 2, 4 or 8, not by scale={scale}")
        gc = nf // 2 if gc is None else gc
        self.scale = scale

        self.conv_first = nn.Conv2d(3, nf, 3, padding=1)
        self.RRDB_trunk = nn.Sequential(*(RRDB(nf, gc) for _ in range(nb)))
        self.trunk_conv = nn.Conv2d(nf, nf, 3, padding=1)

        for doubling in range(1, scale.bit_length()):
            self.add_module(f"upconv{doubling}", nn.Conv2d(nf, nf, 3, padding=1))
        self.HRconv = nn.Conv2d(nf, nf, 3, padding=1)
        self.conv_last = nn.Conv2d(nf, 3, 3, padding=1)

    def features(self, lr: Tensor) -> list[Tensor]:
        """What SRDiff's U-Net is shown: the output of every block, then that of the whole trunk.

        Args:
            lr: `[B,3,h,w]` in [-1, 1].

        Returns:
            `nb + 1` maps `[B,nf,h,w]`.
        """
        first = feature = self.conv_first((lr + 1) / 2)
        maps = []
        for block in self.RRDB_trunk:
            feature = block(feature)
            maps.append(feature)
        return [*maps, first + self.trunk_conv(feature)]

    def enlarging_convs(self) -> Iterator[nn.Module]:
        """One convolution per doubling, in order."""
        return (self.get_submodule(f"upconv{doubling}") for doubling in range(1, self.scale.bit_length()))

    def image_layers(self) -> list[nn.Module]:
        """The layers after the features, which only the network's own image needs."""
        return [*self.enlarging_convs(), self.HRconv, self.conv_last]

    def forward(self, lr: Tensor) -> Tensor:
        """`[B,3,h,w]` in [-1, 1] to `[B,3,scale*h,scale*w]`, clamped to [-1, 1], as published also in training."""
        feature = self.features(lr)[-1]
        for conv in self.enlarging_convs():
            feature = functional.leaky_relu(conv(functional.interpolate(feature, scale_factor=2.0)), NEGATIVE_SLOPE)
        image: Tensor = self.conv_last(functional.leaky_relu(self.HRconv(feature), NEGATIVE_SLOPE))
        return image.clamp(0, 1) * 2 - 1
