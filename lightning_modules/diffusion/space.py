"""The space in which diffusion runs: pixels, the residual to the enlarged image, or latents of an autoencoder."""

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.randomness import Randn


class Space(nn.Module, ABC):
    """Maps images `[B,3,H,W]` in [-1, 1] to states and back; `up` is the enlarged low-resolution image.

    Attributes:
        factor: Side of a state pixel in image pixels.
    """

    factor: int = 1

    @abstractmethod
    def encode(self, image: Tensor, up: Tensor) -> Tensor:
        """The state of an image, `[B,C,H/factor,W/factor]`."""

    def encode_target(self, image: Tensor, up: Tensor, randn: Randn = torch.randn_like) -> Tensor:
        """The state of a training target, where one is drawn with `randn`; by default that of `encode`."""
        return self.encode(image, up)

    @abstractmethod
    def decode(self, state: Tensor, up: Tensor) -> Tensor:
        """The image of a state, `[B,3,H,W]`, not clamped."""

    @abstractmethod
    def bound(self, x0: Tensor) -> Tensor:
        """An estimate of the clean state, clamped to the range of clean states if they have one."""


class Pixels(Space):
    """States are images.

    Args:
        clip: Clamp every estimate of the clean image to [-1, 1], as SR3's public sampler does at each step.
    """

    def __init__(self, clip: bool = True) -> None:
        super().__init__()
        self.clip = clip

    def encode(self, image: Tensor, up: Tensor) -> Tensor:
        """The image itself."""
        return image

    def decode(self, state: Tensor, up: Tensor) -> Tensor:
        """The state itself."""
        return state

    def bound(self, x0: Tensor) -> Tensor:
        """The estimate, clamped to [-1, 1] with `clip`."""
        return x0.clamp(-1, 1) if self.clip else x0


class Residual(Space):
    """States are the scaled difference to the enlarged image (Eq. 1 of SRDiff, arXiv:2104.14951).

    Differences above `1 / scale` are clipped: with the published scale of 2, those above 64 of 255 grey levels.

    Args:
        scale: Factor on the difference.
    """

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale

    def encode(self, image: Tensor, up: Tensor) -> Tensor:
        """`clamp(scale * (image - up), -1, 1)`."""
        return self.bound((image - up) * self.scale)

    def decode(self, state: Tensor, up: Tensor) -> Tensor:
        """`clamp(state, -1, 1) / scale + up`."""
        return self.bound(state) / self.scale + up

    def bound(self, x0: Tensor) -> Tensor:
        """The estimate, clamped to [-1, 1]."""
        return x0.clamp(-1, 1)


class Latent(Space):
    """States are the latents of a frozen autoencoder, in float32.

    The state of an image is the mode of the encoder's posterior; that of a training target is a sample of the
    posterior, as in the training of Stable Diffusion. The public DoSSR code samples for the start image, too.

    Args:
        autoencoder: `KLAutoencoder` or `VQAutoencoder`: a module with `encode(image, randn)`, `decode(latent)`, the
            side of a latent pixel in image pixels, `factor`, and the factor on latents, `scale`.
    """

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = cast(Any, autoencoder)
        self.factor: int = self.autoencoder.factor
        self.scale: float = self.autoencoder.scale

    def encode(self, image: Tensor, up: Tensor) -> Tensor:
        """The mode of the posterior of `image`, times `scale`."""
        return self._encode(image, None)

    def encode_target(self, image: Tensor, up: Tensor, randn: Randn = torch.randn_like) -> Tensor:
        """A sample of the posterior of `image`, times `scale`."""
        return self._encode(image, randn)

    def _encode(self, image: Tensor, randn: Randn | None) -> Tensor:
        """The scaled latent, float32.

        Raises:
            ValueError: height or width is not a multiple of `factor`.
        """
        height, width = image.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"a {width}x{height} image has no whole latent: height and width must be multiples of {self.factor} "
                "pixels; set data.init_args.crop to such a multiple"
            )
        latent: Tensor = self.autoencoder.encode(image, randn).float() * self.scale
        return latent

    def decode(self, state: Tensor, up: Tensor) -> Tensor:
        """The image of `state / scale`."""
        image: Tensor = self.autoencoder.decode(state / self.scale).float()
        return image

    def bound(self, x0: Tensor) -> Tensor:
        """The estimate itself: latents have no range."""
        return x0
