"""ResShift's U-Net, whose attention is Swin's window attention, under published key names (arXiv:2307.12348)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.networks.unet_adm import PositionalEmbedding, zero


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to `[B,C,2H,2W]`."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to `[B,C',H/2,W/2]`."""
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """Two convolutions and a residual connection; the time embedding scales and shifts the second normalisation."""

    def __init__(
        self, channels: int, out_channels: int, *, time_channels: int, norm_groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * out_channels))

        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )

        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` `[B,C,H,W]` and `time` `[B,time_channels]` to `[B,C',H,W]`."""
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, dim=1)
        hidden = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        out: Tensor = self.skip_connection(x) + self.out_layers[1:](hidden)
        return out


class WindowAttention(nn.Module):
    """Multi-head self-attention inside square windows, with a learned bias per relative position (arXiv:2103.14030).

    Args:
        channels: Of input and output.
        window: Side of a window.
        heads: Attention heads.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, *, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

        # For each pair of tokens, the row of the table that holds the bias of their offset.
        rows, columns = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
        offset_rows = rows[:, None] - rows + window - 1
        offset_columns = columns[:, None] - columns + window - 1
        index = offset_rows * (2 * window - 1) + offset_columns
        self.register_buffer("relative_position_index", index, persistent=False)

        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attends inside each window.

        Args:
            windows: `[B,n,N,C]`, N tokens in each of n windows.
            mask: `[n,N,N]`, added to the logits; None for none.

        Returns:
            `[B,n,N,C]`.
        """
        query, key, value, bias = self._tokens(windows, mask)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = attended.view(*windows.shape[:2], self.heads, windows.shape[2], -1).transpose(2, 3)
        out: Tensor = self.proj(attended.reshape(windows.shape))
        return out

    def received(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention that each token receives in its window: mean over heads, sum over queries.

        Args:
            windows: As for `forward`.
            mask: As for `forward`.

        Returns:
            `[B,n,N]`, 1 on average.
        """
        query, key, _, bias = self._tokens(windows, mask)
        weights: Tensor = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(dim=-1)
        return weights.sum(dim=-2).view(*windows.shape[:2], self.heads, -1).mean(dim=2)

    def _tokens(self, windows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key and value `[B,n*heads,N,c]`, and the bias of the logits `[1,n*heads,N,N]`."""
        batch, count, tokens, _ = windows.shape
        split = self.qkv(windows).view(batch, count, tokens, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        # scaled_dot_product_attention has fused kernels for 4 dimensions only: windows and heads share one
        query, key, value = split.reshape(3, batch, count * self.heads, tokens, -1)

        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        bias = bias.expand(count, -1, -1, -1) if mask is None else bias + mask[:, None]
        return query, key, value, bias.reshape(1, count * self.heads, tokens, tokens).to(query.dtype)


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to the same shape."""
        hidden = self.dropout(functional.gelu(self.fc1(x)))
        out: Tensor = self.dropout(self.fc2(hidden))
        return out


def partition(x: Tensor, window: int) -> Tensor:
    """`[B,C,H,W]` to `[B, H/window * W/window, window^2, C]`."""
    batch, channels, height, width = x.shape
    grid = x.view(batch, channels, height // window, window, width // window, window)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, window * window, channels)


def unpartition(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`."""
    batch, channels = windows.shape[0], windows.shape[-1]
    grid = windows.view(batch, height // window, width // window, window, window, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


Mask = Literal["published", "swin"]


def shift_mask(height: int, width: int, *, window: int, shift: int, kind: Mask) -> Tensor:
    """A mask for the logits of shifted windows, `[n,N,N]`: 0 inside a region, -100 between regions, as in Swin.

    The cyclic shift brings tokens from opposite borders of the image into one window; they must not attend to each
    other.

    Args:
        height: Of the image.
        width: Of the image.
        window: Side of a window.
        shift: Of the windows, in pixels.
        kind: `swin` separates what was wrapped around, in both directions. ResShift's code indexes the wrong axes and
            flattens its mask by columns, so it separates columns only, and only in the bottom row of windows; the
            published weights were trained with that, and `published` reproduces it.
    """

    def band(size: int) -> Tensor:
        """0, 1 or 2 for each position: in no border window, in one but not wrapped around, wrapped around."""
        position = torch.arange(size)
        return (position >= size - window).int() + (position >= size - shift).int()

    if kind == "swin":
        region = band(height)[:, None] * 3 + band(width)
        ids = partition(region[None, None], window)[0, :, :, 0]
    else:
        rows = band(height).view(-1, 1, 1, window)
        ids = rows.expand(-1, width // window, window, -1).reshape(-1, window * window)
    return torch.where(ids[:, :, None] == ids[:, None, :], 0.0, -100.0)


@dataclass(frozen=True)
class Swin:
    """Sizes that all Swin layers of a network share; see the arguments of `UNetSwin`."""

    width: int
    depth: int
    heads: int
    window: int
    mlp_ratio: int
    mask: Mask
    norm_groups: int
    dropout: float


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a normalisation and with a residual connection.

    As in ResShift, the normalisation is GroupNorm, where Swin has LayerNorm.

    Args:
        swin: Sizes that all blocks share.
        window: Side of a window.
        shift: Of the windows, in pixels; 0 for none.
    """

    def __init__(self, swin: Swin, *, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift, self.mask = window, shift, swin.mask

        self.norm1 = nn.GroupNorm(swin.norm_groups, swin.width)
        self.attn = WindowAttention(swin.width, window=window, heads=swin.heads)
        self.norm2 = nn.GroupNorm(swin.norm_groups, swin.width)
        self.mlp = Mlp(swin.width, swin.width * swin.mlp_ratio, swin.dropout)

    def attention(self, x: Tensor) -> Tensor:
        """Attention inside the windows of the cyclically shifted image, shifted back: `[B,C,H,W]` to the same."""
        return self._in_place(self.attn(*self._windows(x)), x)

    def received_attention(self, x: Tensor) -> Tensor:
        """Attention that each position receives from its window: `[B,C,H,W]` to `[B,H,W]`, 1 on average."""
        return self._in_place(self.attn.received(*self._windows(self.norm1(x)))[..., None], x)[:, 0]

    def _windows(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The windows of the cyclically shifted image, and their mask."""
        if not self.shift:
            return partition(x, self.window), None

        height, width = x.shape[-2:]
        mask = shift_mask(height, width, window=self.window, shift=self.shift, kind=self.mask).to(x.device)
        return partition(x.roll((-self.shift, -self.shift), dims=(2, 3)), self.window), mask

    def _in_place(self, windows: Tensor, x: Tensor) -> Tensor:
        """Windows `[B,n,N,C]` as an image in the grid of `x`, shifted back."""
        return unpartition(windows, self.window, *x.shape[-2:]).roll((self.shift, self.shift), dims=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to the same shape; H and W are multiples of the window."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Projection(nn.Module):
    """A 1x1 convolution, under the name `proj` that it has in Swin's patch embedding."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to `[B,C',H,W]`."""
        out: Tensor = self.proj(x)
        return out


class SwinLayer(nn.Module):
    """Projects to the width of the Swin blocks, runs them with and without shift in turn, and projects back.

    There is no residual connection around it. A level whose training resolution is at most one window is not shifted,
    also where the image is larger later.

    Args:
        swin: Sizes that all layers share.
        channels: Of input and output.
        size: Side of the level's maps in training.
    """

    def __init__(self, swin: Swin, channels: int, size: int) -> None:
        super().__init__()
        window = min(swin.window, size)
        shift = 0 if size <= swin.window else window // 2

        self.patch_embed = Projection(channels, swin.width)
        self.patch_unembed = Projection(swin.width, channels)
        self.blocks = nn.ModuleList(SwinBlock(swin, window=window, shift=shift * (i % 2)) for i in range(swin.depth))

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` to the same shape."""
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.patch_unembed(x)
        return out


class Stage(nn.ModuleList):
    """Layers in sequence, of which the residual blocks also read the time embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` `[B,C,H,W]` and `time` `[B,time_channels]` to the last layer's output."""
        for layer in self:
            x = layer(x, time) if isinstance(layer, ResBlock) else layer(x)
        return x


def image_features(channels: int, halvings: int) -> tuple[nn.Module, int]:
    """Convolutions that halve an image to the size of the state, and their number of output channels."""
    layers: list[nn.Module] = []
    width = 16
    for _ in range(halvings):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), Downsample(width, 2 * width)]
        channels = width = 2 * width
    return nn.Sequential(*layers), channels


MakeResBlock = Callable[[int, int], ResBlock]  # channels in and out
MakeSwinLayer = Callable[[int, int], SwinLayer]  # channels and training size


def encoder(
    first: nn.Module,
    widths: Sequence[int],
    sizes: Sequence[int],
    blocks: int,
    residual: MakeResBlock,
    swin: MakeSwinLayer,
) -> tuple[nn.ModuleList, list[int]]:
    """The encoder's stages, and the channels of the map that each hands to the decoder."""
    stages, skips = nn.ModuleList([Stage([first])]), [widths[0]]

    for level, width in enumerate(widths):
        for block in range(blocks):
            attention = [swin(width, sizes[level])] if block == 0 else []
            stages.append(Stage([residual(skips[-1], width), *attention]))
            skips.append(width)
        if level < len(widths) - 1:
            stages.append(Stage([Downsample(width, width)]))
            skips.append(width)

    return stages, skips


def decoder(
    skips: Sequence[int],
    widths: Sequence[int],
    sizes: Sequence[int],
    blocks: int,
    residual: MakeResBlock,
    swin: MakeSwinLayer,
) -> nn.ModuleList:
    """The decoder's stages, each of which also reads one of the encoder's maps, last first."""
    stages, channels, unused = nn.ModuleList(), widths[-1], list(skips)

    for level, width in reversed(list(enumerate(widths))):
        for block in range(blocks + 1):
            attention = [swin(width, sizes[level])] if block == 0 else []
            enlarge = [Upsample(width)] if level > 0 and block == blocks else []
            stages.append(Stage([residual(channels + unused.pop(), width), *attention, *enlarge]))
            channels = width

    return stages


class UNetSwin(nn.Module):
    """Predicts the clean state or its residual, by residual blocks and a Swin layer after the first of each level.

    Args:
        state_channels: Channels of the diffused state, and of the output.
        image_channels: Channels of the conditioning image.
        image_halvings: How often the conditioning image is halved to reach the size of the state: 0 where they are
            equally large (x4 in the latent space of a VQ-f4), else log2 of the ratio (1 for x2).
        model_channels: Width of the first level.
        channel_mult: Width of each level over `model_channels`; one level per entry, each half the size of the last.
        num_res_blocks: Residual blocks per level of the encoder; the decoder has one more.
        size: Side of the training states, which decides which levels are not shifted.
        swin_width: Channels inside the Swin layers.
        swin_depth: Blocks of a Swin layer.
        head_channels: Channels of an attention head.
        window: Side of an attention window.
        mlp_ratio: Hidden channels of the MLP over `swin_width`.
        mask: Which tokens of a shifted window attend to each other, see `shift_mask`.
        norm_groups: Groups of every normalisation.
        dropout: Probability, in residual blocks and MLPs.
        zero_output: Start training with an output of 0, for a network that predicts a residual.

    Attributes:
        stride: Height and width of the state must be multiples of it.
        conditioning: The label is the index of the step.
        middle_attention: Path of the innermost attention that is not shifted, which self-attention guidance reads.

    Raises:
        ValueError: `head_channels` does not divide `swin_width`, or the levels halve `size` below one pixel.
    """

    conditioning = "index"

    middle_attention = "middle_block.1.blocks.0"
    global_statistics = True  # of its GroupNorms

    def __init__(
        self,
        *,
        state_channels: int = 3,
        image_channels: int = 3,
        image_halvings: int = 0,
        model_channels: int = 160,
        channel_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 2,
        size: int = 64,
        swin_width: int = 192,
        swin_depth: int = 2,
        head_channels: int = 32,
        window: int = 8,
        mlp_ratio: int = 4,
        mask: Mask = "published",
        norm_groups: int = 32,
        dropout: float = 0.0,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        sizes = [size // 2**level for level in range(len(channel_mult))]
        if swin_width % head_channels or sizes[-1] < 1:
            raise ValueError(
                f"swin_width {swin_width} must be a multiple of head_channels {head_channels}, and a training size of "
                f"{size} must survive {len(channel_mult) - 1} halvings"
            )

        # Each level must be a whole number of its windows.
        self.stride = math.lcm(*(2**level * min(window, side) for level, side in enumerate(sizes)))

        time_channels = 4 * model_channels
        self.encoding = PositionalEmbedding(model_channels)
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        self.feature_extractor, image_channels = image_features(image_channels, image_halvings)

        residual = partial(ResBlock, time_channels=time_channels, norm_groups=norm_groups, dropout=dropout)
        heads = swin_width // head_channels
        shared = Swin(swin_width, swin_depth, heads, window, mlp_ratio, mask, norm_groups, dropout)
        swin = partial(SwinLayer, shared)

        widths = [model_channels * multiple for multiple in channel_mult]
        first = nn.Conv2d(state_channels + image_channels, widths[0], 3, padding=1)
        self.input_blocks, skips = encoder(first, widths, sizes, num_res_blocks, residual, swin)
        deepest = widths[-1]
        self.middle_block = Stage([residual(deepest, deepest), swin(deepest, sizes[-1]), residual(deepest, deepest)])
        self.output_blocks = decoder(skips, widths, sizes, num_res_blocks, residual, swin)

        last = nn.Conv2d(widths[0], state_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(norm_groups, widths[0]), nn.SiLU(), zero(last) if zero_output else last)

    def forward(self, x: Tensor, label: Tensor, *, image: Tensor) -> Tensor:
        """Predicts what the parameterization asks for.

        Args:
            x: Scaled state, `[B,state_channels,H,W]`; H and W multiples of `stride`.
            label: Index of the step, `[B]`, 0 for the cleanest.
            image: Conditioning image, `[B,image_channels,h,w]` with `h = H * 2^image_halvings`.

        Returns:
            `[B,state_channels,H,W]`.

        Raises:
            ValueError: the image does not have the size of the state after its halvings.
        """
        with torch.autocast(label.device.type, enabled=False):  # bfloat16 cannot tell neighbouring steps apart
            time = self.time_embed(self.encoding(label).to(self.time_embed[0].weight.dtype))

        features = self.feature_extractor(image)
        if features.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"a conditioning image of {tuple(image.shape[-2:])} gives features of {tuple(features.shape[-2:])}, "
                f"but the state is {tuple(x.shape[-2:])}: set the network's image_halvings to log2 of their ratio"
            )

        hidden = torch.cat([x, features], dim=1)
        skips = []
        for stage in self.input_blocks:
            hidden = stage(hidden, time)
            skips.append(hidden)

        hidden = self.middle_block(hidden, time)

        for stage in self.output_blocks:
            hidden = stage(torch.cat([hidden, skips.pop()], dim=1), time)

        out: Tensor = self.out(hidden)
        return out
