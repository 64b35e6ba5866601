"""Relay Diffusion's weights, which are those of an EDM network."""

from lightning_modules.published.edm import adapt as adapt
