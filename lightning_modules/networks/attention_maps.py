"""Maps of where an image has detail, from DINO and from filters that need no weights. YODA makes its mask of them."""

from abc import ABC, abstractmethod
from typing import Any, Literal, Self, cast

import torch
from kornia.color import rgb_to_grayscale
from kornia.filters import canny, gaussian_blur2d, sobel
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.hub import HubWeights, place_of
from lightning_modules.weights import located

Norm = Literal["minmax", "p2p98", "rank"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGES_AT_ONCE = 8  # transformers keeps the attention of every block, 180 MB an image for ViT-S/8 at 224x224


class AttentionMap(nn.Module, ABC):
    """A map of an image, normalised for each image by itself.

    It is frozen and computed in float32 under autocast as well, so that it is the same in every precision.

    Args:
        norm: `minmax` maps the smallest value to 0 and the largest to 1. `p2p98` does so with the 2nd and the 98th
            percentile and clips. `rank` gives each pixel the share of pixels with smaller values, where equal values
            get their mean.
    """

    def __init__(self, norm: Norm = "minmax") -> None:
        super().__init__()
        self.norm = norm

    @abstractmethod
    def saliency(self, image: Tensor) -> Tensor:
        """The map before normalisation: images `[B,3,h,w]` in [0, 1] to `[B,1,h',w']`."""

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """The normalised map.

        Args:
            image: `[B,3,h,w]` in [-1, 1]; the low-resolution image, the only one that exists at test time.

        Returns:
            `[B,1,h',w']` float32 in [0, 1]; the size is the map's own, its area is the whole image.
        """
        with torch.autocast(image.device.type, enabled=False):
            return normalise(self.saliency((image.float() + 1) / 2).float(), self.norm)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: batch statistics of a frozen network must not drift with the training data."""
        return super().train(False)


def normalise(saliency: Tensor, norm: Norm) -> Tensor:
    """`[B,1,h,w]` to [0, 1], each image by itself; a constant map becomes 0, and 0.5 with `rank`."""
    flat = saliency.flatten(1)

    if norm == "rank":
        ordered = flat.sort(dim=1).values
        below = torch.searchsorted(ordered, flat, right=False)
        up_to = torch.searchsorted(ordered, flat, right=True)
        ranks = (below + up_to - 1) / (2 * max(flat.shape[1] - 1, 1))
        return ranks.view_as(saliency)

    ends = (0.02, 0.98) if norm == "p2p98" else (0.0, 1.0)
    low, high = (percentile(flat, end)[:, None, None, None] for end in ends)
    return ((saliency - low) / (high - low + 1e-12)).clamp(0, 1)


def percentile(flat: Tensor, share: float) -> Tensor:
    """The value below which `share` of each row lies, interpolated: `[B,N]` to `[B]`."""
    # torch.quantile does the same, but refuses rows of more than 16 million values.
    position = share * (flat.shape[1] - 1)
    below = int(position)
    ordered = flat.sort(dim=1).values
    return torch.lerp(ordered[:, below], ordered[:, min(below + 1, flat.shape[1] - 1)], position - below)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `[B,C,h,w]`, cut off at 3 sigma; the border is repeated, which works for images of any size."""
    size = 2 * round(3 * sigma) + 1
    blurred: Tensor = gaussian_blur2d(image, (size, size), (sigma, sigma), border_type="replicate")
    return blurred


class Constant(AttentionMap):
    """The same attention everywhere. Where it and YODA's lower bound add up to 1, every pixel always diffuses.

    Args:
        value: The attention, in [0, 1].

    Raises:
        ValueError: `value` is outside [0, 1].
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        if not 0 <= value <= 1:
            raise ValueError(f"an attention of value={value} is outside [0, 1]")
        self.value = value

    def saliency(self, image: Tensor) -> Tensor:
        """`value` everywhere."""
        return torch.full_like(image[:, :1], self.value)

    def forward(self, image: Tensor) -> Tensor:
        """`value` everywhere, not normalised: `[B,1,h,w]`."""
        return self.saliency(image.float())


class Sobel(AttentionMap):
    """Magnitude of the luma's gradient, blurred with a sigma of 1 pixel."""

    def saliency(self, image: Tensor) -> Tensor:
        """`[B,1,h,w]`."""
        return blur(sobel(rgb_to_grayscale(image)), sigma=1.0)


class Canny(AttentionMap):
    """Canny's edges of the luma, blurred with a sigma of 1.5 pixels.

    Args:
        low: Gradient above which a pixel next to a strong edge continues it. The unit is luma in [0, 1] under
            unnormalised Sobel kernels; the default is the customary 100 of 255.
        high: Gradient above which a pixel is a strong edge, in the same unit; the default is 200 of 255.
        norm: See `AttentionMap`.
    """

    def __init__(self, low: float = 0.4, high: float = 0.8, norm: Norm = "minmax") -> None:
        super().__init__(norm)
        self.low, self.high = low, high

    def saliency(self, image: Tensor) -> Tensor:
        """`[B,1,h,w]`."""
        _, edges = canny(rgb_to_grayscale(image), self.low, self.high, kernel_size=(5, 5), sigma=(1.0, 1.0))
        return blur(edges, sigma=1.5)


class ScaleSpace(AttentionMap):
    """The strongest blob at each pixel: the largest `sigma^2 |Laplacian of Gaussian|` of the luma over all scales.

    Args:
        sigmas: The scales, in pixels of the image.
        norm: See `AttentionMap`.
    """

    def __init__(self, sigmas: tuple[float, ...] = (1.0, 1.6, 2.56, 4.0), norm: Norm = "minmax") -> None:
        super().__init__(norm)
        self.sigmas = sigmas

    def saliency(self, image: Tensor) -> Tensor:
        """`[B,1,h,w]`."""
        luma = rgb_to_grayscale(image)
        responses = [sigma**2 * laplacian(blur(luma, sigma)).abs() for sigma in self.sigmas]
        return torch.stack(responses).amax(dim=0)


def laplacian(image: Tensor) -> Tensor:
    """The five-point Laplacian of `[B,1,h,w]`, to the same shape; the border is repeated."""
    kernel = image.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return functional.conv2d(functional.pad(image, (1, 1, 1, 1), mode="replicate"), kernel[None, None])


class DinoMap(HubWeights, AttentionMap):
    """A map of a network that DINO trained."""

    @classmethod
    def absent(cls, weights: str, subfolder: str = "") -> str:
        """See `HubWeights.absent`."""
        return (
            f"weights: {weights} of the attention map are neither in the hub's cache nor a complete folder, and cannot "
            "be downloaded. Download them on a machine with a network and give their folder instead, or choose a map "
            "that needs no weights: Sobel, Canny, ScaleSpace or Constant (configs/region/yoda_sobel.yaml)"
        )


class DinoViT(DinoMap):
    """What DINO's class token attends to in the last block of a vision transformer (arXiv:2104.14294).

    Args:
        weights: Hub id (`facebook/dino-vits8` or `facebook/dino-vitb8`), or a folder with the same files.
        combine: How the heads become one map: `max` over the heads, each normalised to [0, 1] first, so that a head
            with large values does not hide the others; `mean`; or the number of one head.
        side: Length that the image's shorter side is resized to; both sides become multiples of the patch.
        norm: See `AttentionMap`.

    Raises:
        FileNotFoundError: the weights are missing and cannot be downloaded.
        ValueError: the weights are no complete vision transformer, or it has no such head.
    """

    def __init__(
        self,
        weights: str = "facebook/dino-vits8",
        combine: Literal["max", "mean"] | int = "max",
        side: int = 224,
        norm: Norm = "minmax",
    ) -> None:
        super().__init__(norm)
        from transformers import ViTModel  # takes seconds to import

        self.model = pretrained(ViTModel, weights, add_pooling_layer=False, attn_implementation="eager")
        self.combine, self.side, heads = combine, side, self.model.config.num_attention_heads
        if not isinstance(combine, str) and not 0 <= combine < heads:
            raise ValueError(f"combine={combine} names a head, but {weights} has the heads 0 to {heads - 1}")

    def saliency(self, image: Tensor) -> Tensor:
        """`[B,1,h',w']`, a value for each patch."""
        shown = imagenet_input(image, self.side, multiple=self.model.config.patch_size)
        heads = torch.cat([self.class_attention(part) for part in torch.split(shown, IMAGES_AT_ONCE)])

        if isinstance(self.combine, int):
            return heads[:, self.combine, None]
        if self.combine == "mean":
            return heads.mean(dim=1, keepdim=True)

        each = normalise(heads.flatten(0, 1)[:, None], "minmax").view_as(heads)
        return each.amax(dim=1, keepdim=True)

    def class_attention(self, shown: Tensor) -> Tensor:
        """Attention of the class token to the patches in the last block, `[B,heads,h',w']`."""
        attention = self.model(shown, output_attentions=True, interpolate_pos_encoding=True).attentions[-1]
        patch = self.model.config.patch_size
        return cast(Tensor, attention[:, :, 0, 1:].unflatten(-1, (shown.shape[-2] // patch, shown.shape[-1] // patch)))


class DinoResNet50(DinoMap):
    """Activations of a ResNet-50 that was trained with DINO, combined over channels.

    Args:
        weights: Hub id, or a folder with the same files.
        combine: `max` or `mean` over channels.
        stage: Which activations: the last stage, 4, has a value for every 32x32 pixels of the resized image, stage 3
            for every 16x16.
        side: Length that the image's shorter side is resized to; both sides become multiples of 32.
        norm: See `AttentionMap`.

    Raises:
        FileNotFoundError: the weights are missing and cannot be downloaded.
        ValueError: the weights are no complete ResNet.
    """

    def __init__(
        self,
        weights: str = "Ramos-Ramos/dino-resnet-50",
        combine: Literal["max", "mean"] = "max",
        stage: Literal[3, 4] = 4,
        side: int = 224,
        norm: Norm = "minmax",
    ) -> None:
        super().__init__(norm)
        from transformers import ResNetModel  # takes seconds to import

        self.model = pretrained(ResNetModel, weights)
        self.combine, self.stage, self.side = combine, stage, side

    def saliency(self, image: Tensor) -> Tensor:
        """`[B,1,h',w']`, a value for each position of the stage."""
        shown = imagenet_input(image, self.side, multiple=32).to(self.model.dtype)
        maps: Tensor = self.model(shown, output_hidden_states=True).hidden_states[self.stage]
        return maps.amax(dim=1, keepdim=True) if self.combine == "max" else maps.mean(dim=1, keepdim=True)


def imagenet_input(image: Tensor, side: int, multiple: int) -> Tensor:
    """Images resized bicubically and standardised as networks trained on ImageNet expect.

    Low-resolution images must be enlarged, because a patch of theirs covers too much of the scene.

    Args:
        image: `[B,3,h,w]` in [0, 1].
        side: Length of the shorter side afterwards.
        multiple: Both sides are rounded to multiples of it, so that patches cover the image exactly.
    """
    scale = side / min(image.shape[-2:])
    size = [max(1, round(length * scale / multiple)) * multiple for length in image.shape[-2:]]
    resized = functional.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (resized.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized - mean) / std


def pretrained(architecture: Any, weights: str, **options: Any) -> Any:
    """A frozen model of transformers, with every weight read from the hub or from a folder.

    Raises:
        FileNotFoundError: the weights are missing and cannot be downloaded.
        ValueError: the folder holds another kind of model, a damaged file, or only a part of the weights.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    if place_of(weights) == "nowhere":
        raise FileNotFoundError(DinoMap.absent(weights))
    weights = located(weights)
    expected = architecture.config_class.model_type
    try:
        found = AutoConfig.from_pretrained(weights).model_type
        if found != expected:
            raise ValueError(f"{weights} holds a model of type {found}, not {expected}")
        model, report = architecture.from_pretrained(weights, output_loading_info=True, **options)
    except OSError as error:
        raise FileNotFoundError(DinoMap.absent(weights)) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{weights} cannot be read as a {architecture.__name__}: {error}") from error

    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{weights} lacks {len(missing)} weights of a {architecture.__name__}, such as {missing[0]}")
    return model.eval().requires_grad_(False)
