"""The U-Net of SR3 (arXiv:2104.07636) as its widely used public implementation builds it, under the same key names.

That implementation departs from the paper in three ways: residual blocks are plain ones instead of BigGAN's, skip
connections lack the factor 1/sqrt(2), and the noise level shifts features but does not scale them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

Conditioning = Literal["level", "index"]


class SR3UNet(nn.Module):
    """Predicts the noise in `x`, with the enlarged low-resolution image on further input channels.

    The arguments have the names of the published configuration files, so that values can be copied from those.

    Args:
        inner_channel: Width of the first level and of the noise embedding.
        channel_mults: Width of each level over `inner_channel`; one level per entry, each half the size of the last.
        attn_res: Side lengths of the levels with self-attention, for an input of `image_size`; the innermost block
            always has it.
        res_blocks: Residual blocks per level of the encoder; the decoder has one more.
        norm_groups: Groups of every GroupNorm; must divide every width, concatenated ones included.
        dropout: Probability, in the second half of each residual block.
        image_size: The size that `attn_res` refers to. Inputs of any other size pass through the same blocks.
        in_channel: 3 for the noisy image and 3 for the enlarged one; 3 for an unconditional network.
        out_channel: Channels of the prediction.
        conditioning: `level`, SR3's continuous noise level; `index`, the integer step of the DDPM variant.
        noise_level_scale: What a `level` is multiplied by. The published networks use 1, at which the sinusoids are
            almost linear in the level; WaveGrad, where the embedding comes from, uses 5000.
        orthogonal_init: Start training from orthogonal weights and zero biases, as the public implementation does.
        zero_output: Start training with an output of 0, for a network that predicts a residual.
        patch: Side of the squares of pixels that become the channels of one position, so that the first level has
            `patch` times fewer rows and columns (1 in every published model).

    Attributes:
        stride: Height and width of an input must be multiples of it.
        conditioning: Which label the network expects, see above.
        middle_attention: Path of the innermost self-attention, which self-attention guidance reads.

    Raises:
        ValueError: a width is not a multiple of `norm_groups`, or `patch` is below 1.
    """

    middle_attention = "mid.0.attn"
    global_statistics = True  # of its GroupNorms, and its attention

    def __init__(
        self,
        *,
        inner_channel: int = 64,
        channel_mults: Sequence[int] = (1, 2, 4, 8, 8),
        attn_res: Sequence[int] = (16,),
        res_blocks: int = 2,
        norm_groups: int = 32,
        dropout: float = 0.0,
        image_size: int = 128,
        in_channel: int = 6,
        out_channel: int = 3,
        conditioning: Conditioning = "level",
        noise_level_scale: float = 1.0,
        orthogonal_init: bool = True,
        zero_output: bool = False,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if patch < 1:
            raise ValueError(f"SR3UNet: patch must be at least 1, got {patch}")
        self.patch = patch
        self.stride = patch * 2 ** (len(channel_mults) - 1)
        self.conditioning = conditioning

        # The two variants have different key names in the published files.
        if conditioning == "level":
            self.noise_level_mlp = embedding(Sinusoids(inner_channel, noise_level_scale), inner_channel)
        else:
            self.time_mlp = embedding(Sinusoids(inner_channel, stored=True), inner_channel)

        def block(width_in: int, width_out: int, attention: bool) -> AttentionBlock:
            residual = ResidualBlock(width_in, width_out, inner_channel, norm_groups, dropout, conditioning)
            return AttentionBlock(residual, SelfAttention(width_out, norm_groups) if attention else nn.Identity())

        # Encoder: `skips` holds the widths of the maps that the decoder concatenates, in order.
        width, downs = inner_channel, nn.ModuleList([nn.Conv2d(in_channel * patch**2, inner_channel, 3, padding=1)])
        skips = [width]
        for level, mult in enumerate(channel_mults):
            if level > 0:
                downs.append(Downsample(width))
                skips.append(width)
            for _ in range(res_blocks):
                downs.append(block(width, inner_channel * mult, image_size // (patch * 2**level) in attn_res))
                width = inner_channel * mult
                skips.append(width)
        self.downs = downs

        self.mid = nn.ModuleList([block(width, width, True), block(width, width, False)])

        self.ups = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mults))):
            for _ in range(res_blocks + 1):
                self.ups.append(
                    block(width + skips.pop(), inner_channel * mult, image_size // (patch * 2**level) in attn_res)
                )
                width = inner_channel * mult
            if level > 0:
                self.ups.append(Upsample(width))
        self.final_conv = Block(width, out_channel * patch**2, norm_groups)

        if orthogonal_init:
            self.apply(initialise_orthogonally)
        if zero_output:
            *_, last = self.final_conv.modules()
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, label: Tensor, image: Tensor | None = None) -> Tensor:
        """Predicts the noise.

        Args:
            x: Noisy image, `[B,3,H,W]`; H and W multiples of `stride`.
            label: `[B]`, the noise level sqrt(alpha-bar) or the index of the step, see `conditioning`.
            image: The enlarged low-resolution image, `[B,3,H,W]`; None for an unconditional network.

        Returns:
            `[B,out_channel,H,W]`.

        Raises:
            ValueError: a side of `x` is not a multiple of `stride`.
        """
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(
                f"SR3UNet got {x.shape[-2]}x{x.shape[-1]} pixels, but divides their sides by {self.stride}: "
                f"both sides must be multiples of {self.stride}. Choose such a crop size for the data."
            )

        h = functional.pixel_unshuffle(x if image is None else torch.cat([image, x], dim=1), self.patch)
        embedded = self.embed(label)

        skips = []
        for layer in self.downs:
            h = layer(h, embedded) if isinstance(layer, AttentionBlock) else layer(h)
            skips.append(h)

        for layer in self.mid:
            h = layer(h, embedded)

        for layer in self.ups:
            if isinstance(layer, AttentionBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedded)
            else:
                h = layer(h)

        return functional.pixel_shuffle(self.final_conv(h), self.patch)

    def embed(self, label: Tensor) -> Tensor:
        """`[B]` to `[B,inner_channel]`, in float32 under autocast: bfloat16 cannot tell neighbouring levels apart."""
        encoding, *layers = self.noise_level_mlp if self.conditioning == "level" else self.time_mlp
        with torch.autocast(label.device.type, enabled=False):
            embedded: Tensor = encoding(label).to(layers[0].weight.dtype)
            for layer in layers:
                embedded = layer(embedded)
        return embedded


class Sinusoids(nn.Module):
    """Sines and cosines of a label, `[B]` to `[B,width]`, at frequencies 1e4^(-j/n), j < n = width/2.

    Args:
        width: Width of the encoding; even.
        scale: What the label is multiplied by.
        stored: Whether the state dict holds the frequencies, as the published files of the DDPM variant do.
    """

    inv_freq: Tensor

    def __init__(self, width: int, scale: float = 1.0, stored: bool = False) -> None:
        super().__init__()
        frequencies = 1e4 ** -torch.linspace(0, 1, width // 2 + 1, dtype=torch.float64)[:-1]
        self.register_buffer("inv_freq", frequencies.float(), persistent=stored)
        self.scale = scale

    def forward(self, label: Tensor) -> Tensor:
        """`[B]` to `[B,width]`, sines first, then cosines."""
        angles = self.scale * label.float()[:, None] * self.inv_freq
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def embedding(encoding: Sinusoids, width: int) -> nn.Sequential:
    """The encoding and two linear layers, under the indices that they have in published files."""
    return nn.Sequential(encoding, nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class Block(nn.Sequential):
    """GroupNorm, SiLU, dropout, 3x3 convolution; the name `block` is part of published keys."""

    def __init__(self, width_in: int, width_out: int, norm_groups: int, dropout: float = 0.0) -> None:
        layers = (group_norm(norm_groups, width_in), nn.SiLU(), nn.Dropout(dropout))
        block = nn.Sequential(*layers, nn.Conv2d(width_in, width_out, 3, padding=1))
        super().__init__(OrderedDict(block=block))


class ResidualBlock(nn.Module):
    """Two `Block`s with the projected noise embedding added in between, and a skip connection."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        width_embedding: int,
        norm_groups: int,
        dropout: float,
        conditioning: Conditioning,
    ) -> None:
        super().__init__()
        project = nn.Linear(width_embedding, width_out)
        if conditioning == "level":
            self.noise_func = nn.Sequential(OrderedDict(noise_func=nn.Sequential(project)))
        else:
            self.mlp = nn.Sequential(nn.SiLU(), project)
        self.conditioning = conditioning

        self.block1 = Block(width_in, width_out, norm_groups)
        self.block2 = Block(width_out, width_out, norm_groups, dropout)
        self.res_conv = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """`[B,width_in,H,W]` and `[B,width_embedding]` to `[B,width_out,H,W]`."""
        with torch.autocast(x.device.type, enabled=False):
            shift = (self.noise_func if self.conditioning == "level" else self.mlp)(embedded)
        h: Tensor = self.block1(x)
        h = self.block2(h + shift.to(h.dtype)[:, :, None, None])
        return h.add(self.res_conv(x))


class SelfAttention(nn.Module):
    """Self-attention over all positions, with a single head of the features' width."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(norm_groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,width,H,W]` to the same."""
        query, key, value = self._tokens(x)
        attended = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[-2]))
        return x + out

    def received_attention(self, x: Tensor) -> Tensor:
        """Attention that each position receives, summed over queries: `[B,width,H,W]` to `[B,H,W]`, 1 on average."""
        query, key, _ = self._tokens(x)
        received: Tensor = (query @ key.mT / x.shape[1] ** 0.5).softmax(dim=-1).sum(dim=-2)
        return received.view(x.shape[0], *x.shape[-2:])

    def _tokens(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens: Tensor = rearrange(self.qkv(self.norm(x)), "b (n c) h w -> n b 1 (h w) c", n=3)
        return tokens.unbind()


class AttentionBlock(nn.Module):
    """A residual block, then self-attention or the identity."""

    def __init__(self, res_block: ResidualBlock, attn: nn.Module) -> None:
        super().__init__()
        self.res_block = res_block
        self.attn = attn

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """`[B,width_in,H,W]` and `[B,width_embedding]` to `[B,width_out,H,W]`."""
        h: Tensor = self.attn(self.res_block(x, embedded))
        return h


class Downsample(nn.Sequential):
    """Halves height and width; the name `conv` is part of published keys."""

    def __init__(self, width: int) -> None:
        super().__init__(OrderedDict(conv=nn.Conv2d(width, width, 3, stride=2, padding=1)))


class Upsample(nn.Sequential):
    """Doubles height and width; the name `conv` is part of published keys."""

    def __init__(self, width: int) -> None:
        up, conv = nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(width, width, 3, padding=1)
        super().__init__(OrderedDict(up=up, conv=conv))


def group_norm(groups: int, width: int) -> nn.GroupNorm:
    """A GroupNorm.

    Raises:
        ValueError: `groups` does not divide `width`; the message names the arguments to change.
    """
    if width % groups:
        raise ValueError(
            f"norm_groups={groups} does not divide a width of {width} channels; "
            "choose inner_channel, channel_mults and norm_groups such that every width, also of two concatenated "
            "feature maps, is a multiple of norm_groups"
        )
    return nn.GroupNorm(groups, width)


def initialise_orthogonally(module: nn.Module) -> None:
    """Orthogonal weights and zero biases for every convolution and linear layer."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
