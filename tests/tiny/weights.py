"""Small random models of the classes that configs load from a hub, in the hub's layout, or from a checkpoint."""

from pathlib import Path

import torch
import yaml
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from lightning_modules.checkpoint import write_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.config_files import CONFIGS
from tests.tiny.stable_diffusion import write_latent_models

TINY = Path(__file__).parent


def write_tiny_weights(folder: Path) -> None:
    """What overlays in tests/tiny find at ${oc.env:DIFFSR_TINY}."""
    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "dino_vit")
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    ResNetModel(resnet).save_pretrained(folder / "dino_resnet")
    write_sr3(folder / "sr3_cosine.ckpt", "sr3_cosine_16_128")
    write_latent_models(folder)
    write_sr3(folder / "sr3_cosine_x4.ckpt", "sr3_cosine_64_256")


def write_sr3(checkpoint: Path, experiment: str) -> None:
    """A tiny SR3 of an experiment, untrained: what SkipDiff's policies are tried on."""
    composed = [CONFIGS / f"{experiment}.yaml", TINY / "method" / "sr3.yaml", TINY / "base.yaml"]
    config = checkpoint.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"compose": [str(path) for path in composed]}))
    write_checkpoint(*configured_model(config), checkpoint)
