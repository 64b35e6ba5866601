"""Frozen models of diffusers and transformers, every weight read from the hub or from a folder of the hub's layout."""

from typing import Any

from torch import nn


def frozen(architecture: Any, weights: str, *, subfolder: str = "", option: str) -> Any:
    """A model in evaluation mode, in float32, whose parameters take no gradient.

    Args:
        architecture: A model class of diffusers or transformers.
        weights: Hub id, or a folder.
        subfolder: Where in it the model lies, `unet` for instance.
        option: What sets `weights`, as errors name it.

    Raises:
        FileNotFoundError: the files are neither there nor to be had; they are named.
        ValueError: they hold another class, a damaged file, or not all of the weights.
    """
    from safetensors import SafetensorError

    place = f"{weights}/{subfolder}" if subfolder else weights
    name = architecture.__name__
    # diffusers would say that accelerate, which the other way of loading needs, is not installed
    quietly = {"low_cpu_mem_usage": False} if hasattr(architecture, "load_config") else {}
    try:
        found = written_for(architecture, weights, subfolder)
        if found != name:
            raise ValueError(f"{place}/config.json describes a {found}, where {option} needs a {name}")
        model, report = architecture.from_pretrained(
            weights, subfolder=subfolder, use_safetensors=True, output_loading_info=True, **quietly
        )
    except OSError as error:
        raise FileNotFoundError(absent(architecture, place, option)) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{place} cannot be read as a {name}: {str(error).splitlines()[0]}") from error
    if wrong := sorted([*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]):
        raise ValueError(
            f"{place} lacks {len(wrong)} weights of the {name} that its config.json describes, such as {wrong[0]}: "
            "the download or copy is partial"
        )
    return model.float().eval().requires_grad_(False)


def written_for(architecture: Any, weights: str, subfolder: str) -> str | None:
    """The class that `config.json` names."""
    if hasattr(architecture, "load_config"):  # diffusers
        return str(architecture.load_config(weights, subfolder=subfolder).get("_class_name"))
    config, _ = architecture.config_class.get_config_dict(weights, subfolder=subfolder)
    if not config:  # what transformers makes of a folder without one
        raise FileNotFoundError(f"{weights}/{subfolder}/config.json")
    return next(iter(config.get("architectures") or []), None)


def absent(architecture: Any, place: str, option: str) -> str:
    """What to do about weights that are not there."""
    stem = "diffusion_pytorch_model" if hasattr(architecture, "load_config") else "model"
    return (
        f"{place}: no {architecture.__name__} is there: expected config.json and {stem}.safetensors, in a folder or "
        "the hub's cache, and they cannot be downloaded. Download them on a machine with a network (hf download ID "
        f"--local-dir FOLDER) and give the folder as {option}"
    )


class Frozen(nn.Module):
    """Stays in evaluation mode, whatever the module around it does."""

    def train(self, mode: bool = True) -> "Frozen":
        """Evaluation mode."""
        return super().train(False)
