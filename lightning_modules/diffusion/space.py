"""Where diffusion runs: pixels, the residual to the enlarged image, or a latent space."""

from abc import ABC, abstractmethod
from typing import Any, cast

from torch import Tensor, nn


class Space(nn.Module, ABC):
    """Maps images to states and back. Images `[B,3,H,W]` in [-1, 1]; `up` is the enlarged low-resolution image."""

    factor: int = 1  # image pixels per state pixel, each way

    @abstractmethod
    def encode(self, image: Tensor, up: Tensor) -> Tensor:
        """State of `image`, `[B,C,H/factor,W/factor]`."""

    def encode_target(self, image: Tensor, up: Tensor) -> Tensor:
        """State of a training target: by default as any image's."""
        return self.encode(image, up)

    @abstractmethod
    def decode(self, state: Tensor, up: Tensor) -> Tensor:
        """Image of `state`; not clamped."""

    @abstractmethod
    def bound(self, x0: Tensor) -> Tensor:
        """Brings an estimate of the clean state back into the range that clean states have."""


class Pixels(Space):
    """States are images.

    Args:
        clip: Clamp every estimate of the clean image to [-1, 1], as SR3's public sampler does at each step.
    """

    def __init__(self, clip: bool = True) -> None:
        super().__init__()
        self.clip = clip

    def encode(self, image: Tensor, up: Tensor) -> Tensor:
        """The image."""
        return image

    def decode(self, state: Tensor, up: Tensor) -> Tensor:
        """The state."""
        return state

    def bound(self, x0: Tensor) -> Tensor:
        """Clamped to [-1, 1] with `clip`."""
        return x0.clamp(-1, 1) if self.clip else x0


class Residual(Space):
    """States are the residual to the enlarged image (Eq. 1 of SRDiff, arXiv:2104.14951); the enlarged image is 0.

    A residual beyond `1 / scale` cannot be represented: with the published scale of 2, more than 64 grey levels.

    Args:
        scale: Factor that stretches the residual towards [-1, 1].
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
        """Clamped to [-1, 1]."""
        return x0.clamp(-1, 1)


class Latent(Space):
    """States are the latents of a frozen autoencoder, in float32.

    An image has one state, the mode of its posterior; a training target is drawn from the posterior, as Stable
    Diffusion was trained. The public DoSSR code also draws the state that sampling starts from.

    Args:
        autoencoder: Module with `encode(image, sample)`, `decode(latent)`, `factor`, the image pixels per latent pixel,
            and `scale`, which latents are multiplied by: `KLAutoencoder` or `VQAutoencoder`.
    """

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = cast(Any, autoencoder)
        self.factor: int = self.autoencoder.factor
        self.scale: float = self.autoencoder.scale

    def encode(self, image: Tensor, up: Tensor) -> Tensor:
        """The latent of `image`, times `scale`."""
        return self._encode(image, sample=False)

    def encode_target(self, image: Tensor, up: Tensor) -> Tensor:
        """A draw from the posterior of `image`, times `scale`."""
        return self._encode(image, sample=True)

    def _encode(self, image: Tensor, sample: bool) -> Tensor:
        height, width = image.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"a {width}x{height} image has no whole latent: sides must be multiples of {self.factor} pixels; set "
                "data.init_args.crop to one"
            )
        latent: Tensor = self.autoencoder.encode(image, sample=sample).float() * self.scale
        return latent

    def decode(self, state: Tensor, up: Tensor) -> Tensor:
        """The image of `state / scale`."""
        image: Tensor = self.autoencoder.decode(state / self.scale).float()
        return image

    def bound(self, x0: Tensor) -> Tensor:
        """As it is: latents have no range."""
        return x0
