"""Small random models of the classes that configs load from a hub, written to a folder in the hub's layout."""

from pathlib import Path

import torch
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel


def write_tiny_weights(folder: Path) -> None:
    """What overlays in tests/tiny find at ${oc.env:DIFFSR_TINY}."""
    torch.manual_seed(0)
    vit = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=32, patch_size=8)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "dino_vit")
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    ResNetModel(resnet).save_pretrained(folder / "dino_resnet")
