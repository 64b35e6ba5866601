"""The U-Net of ADM (arXiv:2105.05233) as EDM builds it, under the key names of EDM's and Relay Diffusion's checkpoints.

Convolutions start from PyTorch's default initialisation, which the published code writes out; the last one of each
residual branch starts at zero. Halving averages 2x2 pixels and doubling repeats them, which is that code's box filter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

Layer = TypeVar("Layer", bound=nn.Module)


class ADMUNet(nn.Module):
    """Predicts what EDM's preconditioning asks for; the noise level enters by adaptive group normalisation.

    The arguments have the names of the published code.

    Args:
        img_resolution: The size that names the levels and that `attn_resolutions` refers to. Inputs of any other size
            pass through the same blocks.
        in_channels: 3 for the noisy image, plus 3 where the network is shown a low-resolution image as well.
        out_channels: Channels of the prediction.
        model_channels: Width of the first level and of the noise encoding.
        channel_mult: Width of each level over `model_channels`; one level per entry, each half the size of the last.
        channel_mult_emb: Width of the embedding over `model_channels`.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: Sizes of levels with self-attention, for an input of `img_resolution`; the innermost block
            always has it.
        channels_per_head: Width of an attention head.
        dropout: Probability, in the second half of each residual block.
        label_dim: Number of classes that published weights know; 0 for none. A batch has no classes, so the network
            always sees the null label.
        augment_dim: Length of the augmentation vector that published weights know; 0 for none. The network always sees
            the vector of no augmentation.

    Attributes:
        stride: Height and width of an input must be multiples of it.
        conditioning: The label is EDM's `ln(sigma) / 4`.
        middle_attention: Path of the innermost self-attention, which self-attention guidance reads.

    Raises:
        ValueError: `img_resolution` cannot be halved as often as there are levels.
    """

    global_statistics = True  # of its GroupNorms, and its attention
    conditioning = "log_sigma"

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        channels_per_head: int = 64,
        dropout: float = 0.1,
        label_dim: int = 0,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(channel_mult) - 1)
        self.middle_attention = "dec.{0}x{0}_in0.attention".format(img_resolution // self.stride)
        if img_resolution % self.stride:
            raise ValueError(f"img_resolution: {img_resolution} cannot be halved {len(channel_mult) - 1} times")

        self.in_channels = in_channels
        embedding = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None

        def block(width_in: int, width_out: int, attention: bool = False, resample: str = "keep") -> UNetBlock:
            heads = max(1, width_out // channels_per_head) if attention else 0
            return UNetBlock(width_in, width_out, embedding, heads=heads, resample=resample, dropout=dropout)

        levels = [
            Level(img_resolution >> level, model_channels * mult, img_resolution >> level in attn_resolutions)
            for level, mult in enumerate(channel_mult)
        ]
        first = nn.Conv2d(in_channels, levels[0].width, 3, padding=1)
        self.enc, skips = encoder(block, first, levels, num_blocks)
        self.dec = decoder(block, skips, levels, num_blocks)
        self.out_norm = group_norm(levels[0].width)
        self.out_conv = zero(nn.Conv2d(levels[0].width, out_channels, 3, padding=1))

        if self.map_augment is not None:
            zero(self.map_augment)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def forward(self, x: Tensor, label: Tensor, image: Tensor | None = None) -> Tensor:
        """Predicts what the parameterization asks for.

        Args:
            x: Noisy image, `[B,3,H,W]`; H and W multiples of `stride`.
            label: `ln(sigma) / 4`, `[B]`.
            image: The enlarged low-resolution image, `[B,3,H,W]`; None for an unconditional network.

        Returns:
            `[B,out_channels,H,W]`.

        Raises:
            ValueError: a side of `x` is not a multiple of `stride`, or the channels are not `in_channels`.
        """
        h = x if image is None else torch.cat([x, image], dim=1)
        self._check(h)
        embedded = self.embed(label)

        skips = []
        for layer in self.enc.values():
            h = layer(h, embedded) if isinstance(layer, UNetBlock) else layer(h)
            skips.append(h)

        for name, layer in self.dec.items():
            h = layer(torch.cat([h, skips.pop()], dim=1) if "block" in name else h, embedded)

        output: Tensor = self.out_conv(functional.silu(self.out_norm(h)))
        return output

    def embed(self, label: Tensor) -> Tensor:
        """`[B]` to `[B,embedding]`, in float32 under autocast: bfloat16 cannot tell neighbouring levels apart."""
        with torch.autocast(label.device.type, enabled=False):
            encoding = self.map_noise(label).to(self.map_layer0.weight.dtype)
            encoding = encoding + null_embedding(self.map_augment, encoding)
            embedded = self.map_layer1(functional.silu(self.map_layer0(encoding)))
            embedded = functional.silu(embedded + null_embedding(self.map_label, embedded))
        return embedded

    def _check(self, h: Tensor) -> None:
        channels, height, width = h.shape[1:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"ADMUNet got {height}x{width} pixels: both sides must be multiples of {self.stride}. Choose such a "
                "crop size for the data."
            )
        if channels != self.in_channels:
            raise ValueError(
                f"ADMUNet was built with in_channels={self.in_channels} but got {channels}: 3 for the noisy image, and "
                "3 more where the method shows it the low-resolution image (condition_on: up)"
            )


def null_embedding(layer: nn.Linear | None, like: Tensor) -> Tensor:
    """What `layer` makes of the null label, a vector of zeros; zeros where there is no layer."""
    # The layer has no bias, so the result is 0 anyway; but DistributedDataParallel needs every weight in the graph.
    output: Tensor = torch.zeros_like(like) if layer is None else layer(like.new_zeros(1, layer.in_features))
    return output


class PositionalEmbedding(nn.Module):
    """Cosines and sines of a label, `[B]` to `[B,width]`, at frequencies 1e4^(-j/n), j < n = width/2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = 1e4 ** -torch.linspace(0, 1, width // 2 + 1, dtype=torch.float64)[:-1]
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        """`[B]` to `[B,width]`, cosines first, then sines."""
        angles = label.float()[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class UNetBlock(nn.Module):
    """A residual block whose features the embedding scales and shifts, then self-attention where `heads` is not 0.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output.
        embedding: Width of the embedding.
        heads: Attention heads; 0 for no attention.
        resample: `keep` the size, or change it by a factor of 2, `down` or `up`.
        dropout: Probability, before the second convolution.
    """

    def __init__(
        self, width_in: int, width_out: int, embedding: int, *, heads: int, resample: str, dropout: float
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm0 = group_norm(width_in)
        self.conv0 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * width_out)
        self.norm1 = group_norm(width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = zero(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

        self.attention: SelfAttention | None = None
        if heads:
            self.norm2 = group_norm(width_out)
            self.qkv = nn.Conv2d(width_out, 3 * width_out, 1)
            self.attention = SelfAttention(heads)
            self.proj = zero(nn.Conv2d(width_out, width_out, 1))

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """`[B,width_in,H,W]` and `[B,embedding]` to `[B,width_out,H',W']`, of the resampled size."""
        h: Tensor = self.conv0(self._resampled(functional.silu(self.norm0(x))))
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.affine(embedded)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift.to(h.dtype), self.norm1(h).to(h.dtype), scale.to(h.dtype) + 1))
        h = self.skip(self._resampled(x)) + self.conv1(self.dropout(h))
        if self.attention is not None:
            h = h + self.proj(self.attention(self.qkv(self.norm2(h))))
        return h

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x


@dataclass(frozen=True)
class Level:
    """A level of the network: the side of its maps, their width, and whether its blocks have self-attention."""

    size: int
    width: int
    attention: bool


def encoder(
    block: Callable[..., UNetBlock], first: nn.Conv2d, levels: Sequence[Level], num_blocks: int
) -> tuple[nn.ModuleDict, list[int]]:
    """The encoder under published names, and the width of each map that it hands to the decoder."""
    layers, width = nn.ModuleDict({"{0}x{0}_conv".format(levels[0].size): first}), first.out_channels
    skips = [width]

    for depth, level in enumerate(levels):
        name = f"{level.size}x{level.size}"
        if depth > 0:
            layers[f"{name}_down"] = block(width, width, resample="down")
            skips.append(width)
        for index in range(num_blocks):
            layers[f"{name}_block{index}"] = block(width, level.width, level.attention)
            width = level.width
            skips.append(width)

    return layers, skips


def decoder(
    block: Callable[..., UNetBlock], skips: Sequence[int], levels: Sequence[Level], num_blocks: int
) -> nn.ModuleDict:
    """The decoder under published names; each layer called `block` also reads one of the encoder's maps, last first."""
    layers, width, unused = nn.ModuleDict(), levels[-1].width, list(skips)

    for level in reversed(levels):
        name = f"{level.size}x{level.size}"
        if level is levels[-1]:
            layers[f"{name}_in0"] = block(width, width, attention=True)
            layers[f"{name}_in1"] = block(width, width)
        else:
            layers[f"{name}_up"] = block(width, width, resample="up")

        for index in range(num_blocks + 1):
            layers[f"{name}_block{index}"] = block(width + unused.pop(), level.width, level.attention)
            width = level.width

    return layers


class SelfAttention(nn.Module):
    """Self-attention over all positions, of features that interleave query, key and value inside each head.

    It has no weights. It is a module so that self-attention guidance can name it and record its input.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features: Tensor) -> Tensor:
        """`[B,3*C,H,W]` to `[B,C,H,W]`."""
        query, key, value = self._split(features)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return rearrange(attended, "b n (h w) c -> b (n c) h w", h=features.shape[-2])

    def received_attention(self, features: Tensor) -> Tensor:
        """Attention that each position receives: mean over heads, sum over queries.

        Args:
            features: As for `forward`, `[B,3*C,H,W]`.

        Returns:
            `[B,H,W]`, 1 on average.
        """
        query, key, _ = self._split(features)
        weights: Tensor = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
        return weights.mean(dim=1).sum(dim=1).view(-1, *features.shape[-2:])

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = rearrange(features, "b (n c k) h w -> k b n (h w) c", n=self.heads, k=3)
        return query, key, value


def group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm with at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, width // 4), width)


def zero(layer: Layer) -> Layer:
    """The layer itself, all of its parameters set to 0, so that training starts without the branch that it ends."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
