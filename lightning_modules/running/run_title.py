"""What a run is called at Weights & Biases: its experiment and what was changed of it."""

from collections.abc import Mapping, Sequence
from typing import Any

LEFT_OUT = ("ckpt_path", "experiment", "num_workers", "save_dir", "root", "print_config", "devices", "accelerator")


def run_title(experiment: str, overlays: Sequence[str], options: Sequence[str]) -> str:
    """Such as "srdiff +yoda_sobel lower_bound=0.2".

    Args:
        experiment: Its name.
        overlays: The names of the configs laid over it.
        options: Single options as typed, `--KEY VALUE` or `--KEY=VALUE`.
    """
    changed = []
    words = iter(options)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            continue
        value = value if equals else next(words, "")
        name = key.removesuffix(".class_path").rpartition(".")[2]
        if name not in LEFT_OUT and value and len(value) < 80:
            changed.append(f"{name}={value.rpartition('.')[2] if value.count('.') > 1 else value}")
    return " ".join([experiment, *(f"+{name}" for name in overlays), *changed])


def tags(config: Mapping[str, Any]) -> list[str]:
    """The classes that tell runs apart: method, data, sampler, region; and the command."""
    model = (config.get("model") or {}).get("init_args") or {}
    parts = [config.get("model"), config.get("data"), model.get("sampler"), model.get("region")]
    return [part["class_path"].rpartition(".")[2] for part in parts if part and part.get("class_path")]
