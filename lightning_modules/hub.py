"""Frozen models of diffusers and transformers, with every weight read from the hub or from a folder of its layout."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning_modules.weights import entry, is_name, located


def place_of(weights: str, subfolder: str = "") -> Literal["folder", "cache", "hub", "nowhere"]:
    """Where weights are, found out without a network: a folder, the hub's cache, perhaps the hub; or nowhere.

    What can only be a folder is not looked for on the hub: a path that begins with `.`, `~` or `/`, that has more than
    two parts, or whose first part is a folder here. Nothing can be downloaded with `HF_HUB_OFFLINE=1`.

    Args:
        weights: Hub id, a folder, or a name that `lightning weights` lists.
        subfolder: Where in it the model lies.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    parts = Path(weights).parts
    if Path(weights).is_dir():
        return "folder"
    if is_name(weights):
        return "cache" if entry(weights).present() else "nowhere" if constants.HF_HUB_OFFLINE else "hub"
    if weights.startswith((".", "~", "/")) or len(parts) > 2 or Path(parts[0]).is_dir():
        return "nowhere"
    try:
        cached = try_to_load_from_cache(weights, f"{subfolder}/config.json" if subfolder else "config.json")
    except HFValidationError:
        return "nowhere"
    if isinstance(cached, str):
        return "cache"
    return "nowhere" if constants.HF_HUB_OFFLINE else "hub"


class HubWeights:
    """A part with an argument `weights`, a hub id or a folder, and perhaps a `subfolder`: what it lacks, told ahead.

    Attributes:
        subfolder: Where its model lies in the folder, unless the argument says so.
    """

    subfolder: str = ""

    @classmethod
    @abstractmethod
    def absent(cls, weights: str, subfolder: str) -> str:
        """What to do about weights that are missing, as an error message says it."""

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], **_: Any) -> str | None:
        """See `look_ahead.Part.missing`."""
        weights, subfolder = arguments["weights"], arguments.get("subfolder", cls.subfolder)
        return cls.absent(weights, subfolder) if place_of(weights, subfolder) == "nowhere" else None

    @classmethod
    def downloads(cls, arguments: Mapping[str, Any]) -> str | None:
        """See `look_ahead.Part.downloads`."""
        weights, subfolder = arguments["weights"], arguments.get("subfolder", cls.subfolder)
        return f"{weights} of the hub" if place_of(weights, subfolder) == "hub" else None


DOWNLOAD = (
    "They cannot be downloaded: do that on a machine with a network (hf download ID --local-dir FOLDER) and give the "
    "folder instead"
)


def frozen(architecture: Any, weights: str, *, subfolder: str = "") -> Any:
    """A pretrained model in evaluation mode, in float32, whose parameters take no gradient.

    Args:
        architecture: A model class of diffusers or transformers.
        weights: Hub id, a folder, or a name that `lightning weights` lists.
        subfolder: Where in it the model lies, `unet` for instance.

    Raises:
        FileNotFoundError: files are missing and cannot be downloaded; they are named.
        ValueError: the folder holds another class, a damaged file, or only a part of the weights.
    """
    from safetensors import SafetensorError

    if place_of(weights, subfolder) == "nowhere":
        raise FileNotFoundError(missing_files(architecture, f"{weights}/{subfolder}".rstrip("/")))
    weights = located(weights)
    place = f"{weights}/{subfolder}" if subfolder else weights
    name = architecture.__name__
    # With diffusers' default of True it warns where accelerate, which that way of loading needs, is not installed.
    options = {"low_cpu_mem_usage": False} if is_diffusers(architecture) else {}

    try:
        found = stored_class(architecture, weights, subfolder)
        if found != name:
            raise ValueError(f"weights: {place}/config.json describes a {found}, where a {name} is needed")
        model, report = architecture.from_pretrained(
            weights, subfolder=subfolder, use_safetensors=True, output_loading_info=True, **options
        )
    except OSError as error:
        raise FileNotFoundError(missing_files(architecture, place)) from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"weights: {place} cannot be read as a {name}: {str(error).splitlines()[0]}") from error

    # Both libraries only warn of these, and leave such weights at random values.
    if wrong := sorted([*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]):
        raise ValueError(
            f"weights: {place} lacks {len(wrong)} weights of the {name} that its config.json describes, such as "
            f"{wrong[0]}: the download or copy is partial"
        )
    return model.float().eval().requires_grad_(False)


def is_diffusers(architecture: Any) -> bool:
    """Whether a model class is of diffusers, not of transformers."""
    return hasattr(architecture, "load_config")


def stored_class(architecture: Any, weights: str, subfolder: str) -> str | None:
    """The class that `config.json` names; None where it names none."""
    if is_diffusers(architecture):
        return str(architecture.load_config(weights, subfolder=subfolder).get("_class_name"))

    config, _ = architecture.config_class.get_config_dict(weights, subfolder=subfolder)
    if not config:  # transformers returns an empty one where the file is missing
        raise FileNotFoundError(f"{weights}/{subfolder}/config.json")
    return next(iter(config.get("architectures") or []), None)


def missing_files(architecture: Any, place: str) -> str:
    """What to do about weights that are missing, as an error message says it."""
    stem = "diffusion_pytorch_model" if is_diffusers(architecture) else "model"
    return (
        f"weights: {place}: no {architecture.__name__} is there: expected config.json and {stem}.safetensors, in a "
        f"folder or the hub's cache. {DOWNLOAD}"
    )
