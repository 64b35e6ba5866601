"""The experiments of configs/, shrunk: an overlay tests/tiny/<path> for each file configs/<path> that they compose."""

from pathlib import Path

from lightning_modules.config_files import CONFIGS, layers

TINY = Path(__file__).parent
BASE = CONFIGS / "base.yaml"  # what every training experiment composes
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*.yaml") if path != BASE and BASE in layers(path))


def tiny_overlays(config: Path) -> list[Path]:
    """What shrinks an experiment, in the order of what it composes; tests/tiny/base.yaml comes last."""
    mirrored = (TINY / layer.resolve().relative_to(CONFIGS) for layer in layers(config))
    overlays = [overlay for overlay in mirrored if overlay.is_file() and overlay.name != "base.yaml"]
    return [*overlays, TINY / "base.yaml"]


def arguments(config: Path) -> list[str]:
    """`--config` flags of an experiment and its overlays."""
    return [flag for path in [config, *tiny_overlays(config)] for flag in ("--config", str(path))]
