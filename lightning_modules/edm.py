"""EDM: diffusion of the image in the formulation of arXiv:2206.00364."""

from lightning_modules.base import DiffusionModule


class EDM(DiffusionModule):
    """EDM's process, preconditioning and sampler on any network that can be shown an image.

    With `condition_on: up` the network is shown the enlarged low-resolution image beside the noisy one. With `none` it
    is shown nothing, which makes a generator: the first stage of Relay Diffusion's cascade.
    """
