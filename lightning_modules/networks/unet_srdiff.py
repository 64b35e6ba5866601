"""SRDiff's U-Net: small, convolutional, without normalisation, under published key names (arXiv:2104.14951)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def sinusoidal_embedding(label: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, at geometric frequencies from 1 to 1/10000 inclusive: `[B]` to float32 `[B,channels]`."""
    half = channels // 2
    indices = torch.arange(half, dtype=torch.float32, device=label.device)
    angles = label.float()[:, None] * torch.exp(indices * (-math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ReflectionPad(nn.Module):
    """Reflects one pixel on each side. It keeps the dtype of its input, where autocast on CPUs would pad in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to `[B,C,H+2,W+2]`."""
        with torch.autocast(x.device.type, enabled=False):
            return functional.pad(x, (1, 1, 1, 1), mode="reflect")


class Block(nn.Module):
    """Convolution with reflected borders, then Mish."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(ReflectionPad(), nn.Conv2d(channels, out_channels, 3), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to `[B,C',H,W]`."""
        out: Tensor = self.block(x)
        return out


class ResnetBlock(nn.Module):
    """Two blocks with a residual; the time embedding is added between them."""

    def __init__(self, channels: int, out_channels: int, time_channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_channels, out_channels))
        self.block1 = Block(channels, out_channels)
        self.block2 = Block(out_channels, out_channels)
        self.res_conv = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` `[B,C,H,W]` and `time` `[B,time_channels]` to `[B,C',H,W]`."""
        hidden = self.block1(x) + self.mlp(time)[:, :, None, None]
        out: Tensor = self.block2(hidden) + self.res_conv(x)
        return out


class Downsample(nn.Module):
    """A convolution of stride 2 with reflected borders."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(ReflectionPad(), nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to `[B,C,H/2,W/2]`."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """A transposed convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to `[B,C,2H,2W]`."""
        out: Tensor = self.conv(x)
        return out


class LinearAttention(nn.Module):
    """Attention at a cost linear in the number of positions: a softmax over positions of the keys alone, unscaled.

    Args:
        channels: Of input and output.
        heads: Attention heads.
        head_channels: Width of a head.
    """

    def __init__(self, channels: int, heads: int = 4, head_channels: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_channels, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to the same shape."""
        height, width = x.shape[-2:]
        query, key, value = self.to_qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        context = key.softmax(dim=-1) @ value.mT
        attended = context.mT @ query
        out: Tensor = self.to_out(attended.flatten(1, 2).unflatten(-1, (height, width)))
        return out


class Rezero(nn.Module):
    """`fn` times a learned scalar that starts at 0 (ReZero, arXiv:2003.04887)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.g = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to the shape of `fn`'s output."""
        out: Tensor = self.fn(x) * self.g
        return out


class Residual(nn.Module):
    """`fn` plus its input."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to the same shape."""
        out: Tensor = self.fn(x) + x
        return out


class SRDiffUNet(nn.Module):
    """Predicts the noise in a diffused residual, from an encoder's features of the low-resolution image.

    The published `channel_mults` are (1, 2, 2, 4) at scale 8 and (1, 2, 3, 4) at scale 4, with 64 channels and an
    encoder of 8 blocks of 32 channels. As published, the level of full resolution has no skip connection.

    Args:
        scale: Enlargement from the encoder's maps to the image; even.
        channels: Width of the first level.
        channel_mults: Width of each level over `channels`; one level per entry, each half the size of the last.
        encoder_channels: Channels of each encoder map (`nf` of the RRDB network).
        encoder_blocks: Blocks of the encoder (`nb`); every third of its `nb + 1` maps is used.
        out_channels: Channels of the prediction.
        attention: Linear attention at the lowest resolution (off in every published model).
        up_input: Show the network the enlarged image as well, as `up` (off in every published model).
        patch: Side of the squares of pixels that become the channels of one position, so that the first level has
            `patch` times fewer rows and columns (1 in every published model). 2 with twice the channels costs as many
            multiplications as 1, and half the memory. `scale` is the patch, or an even multiple of it.

    Attributes:
        stride: Height and width of an input must be multiples of it.
        smallest: Height and width of an input must be at least this.
        conditioning: The label is the index of the step.

    Raises:
        ValueError: `scale` is odd, or neither the patch nor an even multiple of it, or the encoder has fewer than two
            blocks and therefore no third map.
    """

    conditioning = "index"

    def __init__(
        self,
        scale: int = 4,
        channels: int = 64,
        channel_mults: Sequence[int] = (1, 2, 3, 4),
        encoder_channels: int = 32,
        encoder_blocks: int = 8,
        *,
        out_channels: int = 3,
        attention: bool = False,
        up_input: bool = False,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if scale < 2 or scale % 2:
            raise ValueError(f"SRDiffUNet projects the encoder's maps by an even scale, not by scale={scale}")
        if patch < 1 or (scale != patch and scale % (2 * patch)):
            raise ValueError(
                f"SRDiffUNet: scale={scale} must be the patch, or an even multiple of it, not patch={patch}"
            )
        if encoder_blocks < 2:
            raise ValueError(f"SRDiffUNet uses every third encoder map: encoder_blocks={encoder_blocks} has none")

        self.channels, self.patch = channels, patch
        self.stride = patch * 2 ** (len(channel_mults) - 1)
        self.global_statistics = attention
        self.smallest = 2 * self.stride  # reflection at the lowest level
        widths = [channels * mult for mult in channel_mults]

        used = encoder_channels * ((encoder_blocks + 1) // 3)
        enlarge = scale // patch
        kernel, padding = (2 * enlarge, enlarge // 2) if enlarge > 1 else (3, 1)
        self.cond_proj = nn.ConvTranspose2d(used, channels, kernel, stride=enlarge, padding=padding)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.Mish(), nn.Linear(4 * channels, channels))

        self.downs = nn.ModuleList(self._down(*pair) for pair in pairwise([3 * patch**2, *widths]))
        cast(nn.ModuleList, self.downs[-1])[2] = nn.Identity()  # the lowest level is not halved

        self.mid_block1 = ResnetBlock(widths[-1], widths[-1], channels)
        self.mid_attn = Residual(Rezero(LinearAttention(widths[-1]))) if attention else nn.Identity()
        self.mid_block2 = ResnetBlock(widths[-1], widths[-1], channels)

        self.ups = nn.ModuleList(self._up(*pair) for pair in pairwise(reversed(widths)))
        self.final_conv = nn.Sequential(Block(channels, channels), nn.Conv2d(channels, out_channels * patch**2, 1))
        self.up_proj = nn.Sequential(ReflectionPad(), nn.Conv2d(3 * patch**2, channels, 3)) if up_input else None

    def _down(self, channels: int, out_channels: int) -> nn.ModuleList:
        """A level of the U-Net's encoder: two residual blocks, then half the resolution."""
        first = ResnetBlock(channels, out_channels, self.channels)
        return nn.ModuleList([first, ResnetBlock(out_channels, out_channels, self.channels), Downsample(out_channels)])

    def _up(self, channels: int, out_channels: int) -> nn.ModuleList:
        """A level of the decoder: two residual blocks, of features and skip together, then twice the resolution."""
        first = ResnetBlock(2 * channels, out_channels, self.channels)
        return nn.ModuleList([first, ResnetBlock(out_channels, out_channels, self.channels), Upsample(out_channels)])

    def project(self, features: list[Tensor]) -> Tensor:
        """The condition `features`, `[B,channels,H/patch,W/patch]`, from the encoder's maps `[B,encoder_channels,h,w]`.

        It depends on the low-resolution image alone and is computed once per image; the reference repeats it at every
        step.
        """
        out: Tensor = self.cond_proj(torch.cat(features[2::3], dim=1))
        return out

    def forward(self, x: Tensor, label: Tensor, *, features: Tensor, up: Tensor | None = None) -> Tensor:
        """Predicts the noise.

        Args:
            x: Noisy residual, `[B,3,H,W]`; H and W multiples of `stride`, at least twice `stride`.
            label: Index of the step, `[B]`, 0 to T-1.
            features: `[B,channels,H/patch,W/patch]` from `project`.
            up: The enlarged image, `[B,3,H,W]` in [-1, 1]; only with `up_input`.

        Returns:
            `[B,out_channels,H,W]`.

        Raises:
            ValueError: H or W is no multiple of `stride`, or too small to be reflected at the lowest level.
        """
        height, width = x.shape[-2:]
        if height % self.stride or width % self.stride or min(height, width) < 2 * self.stride:
            raise ValueError(
                f"SRDiffUNet was given {width}x{height} pixels; with {len(self.downs)} levels it needs multiples of "
                f"{self.stride}, and at least {2 * self.stride} on each side"
            )

        time = self.mlp(sinusoidal_embedding(label, self.channels).to(self.cond_proj.weight.dtype))
        if self.up_proj is not None:
            features = features + self.up_proj(functional.pixel_unshuffle(cast(Tensor, up), self.patch))
        x = functional.pixel_unshuffle(x, self.patch)

        skips: list[Tensor] = []
        for level, blocks in enumerate(self.downs):
            first, second, downsample = cast(nn.ModuleList, blocks)
            x = second(first(x, time), time)
            if level == 0:
                x = x + features
            else:
                skips.append(x)
            x = downsample(x)

        x = self.mid_block2(self.mid_attn(self.mid_block1(x, time)), time)

        for blocks in self.ups:
            first, second, upsample = cast(nn.ModuleList, blocks)
            x = upsample(second(first(torch.cat([x, skips.pop()], dim=1), time), time))

        return functional.pixel_shuffle(self.final_conv(x), self.patch)
