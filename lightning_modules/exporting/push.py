"""`lightning push`: an export goes to a hub, from where `hub:OWNER/NAME` loads it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from lightning_modules.checkpoint import CheckpointError
from lightning_modules.exporting.card import NAME as CARD
from lightning_modules.exporting.pairs import read_made
from lightning_modules.weight_files import WeightsError, digest
from lightning_modules.weights import HUB, MODEL, exported


def main(arguments: Sequence[str] | None = None) -> None:
    """`lightning push FOLDER OWNER/NAME [--private]`.

    Raises:
        CheckpointError: the folder is no complete export, or its card names no licence.
        WeightsError: the extra is not installed, or the hub refuses.
    """
    parser = argparse.ArgumentParser(prog="lightning push", description="Publishes an export on the Hugging Face hub.")
    parser.add_argument("folder", type=Path, help="what `lightning export` wrote")
    parser.add_argument("name", metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="only its owner sees it")
    asked = parser.parse_args(arguments)
    address = push(asked.folder.expanduser(), asked.name, private=asked.private)
    print(f"{address}\nlightning enlarge PHOTOS -o ENLARGED --weights {HUB}{asked.name}")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads an export, and returns its address.

    Raises:
        CheckpointError: the folder is no complete export, or its card names no licence.
        WeightsError: the extra is not installed, or the hub refuses.
    """
    check(folder)
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    except ModuleNotFoundError as error:
        raise WeightsError("lightning push: needs the extra: pip install 'diffsr[huggingface_hub]'") from error

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"lightning push {folder.name}")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{name}: the hub does not take it ({reason}); hf auth login, or another name") from error
    return str(address)


def check(folder: Path) -> None:
    """Refuses what is no complete export.

    Raises:
        CheckpointError: it lacks something, its weights are not those of its pairs, or its card names no licence.
        WeightsError: it is no export at all.
    """
    exported(folder)
    if digest(folder / MODEL) != read_made(folder)["weights_sha256"]:
        raise CheckpointError(f"{folder / MODEL}: is not the file that the pairs were made with; export again")
    path = folder / CARD
    header = yaml.safe_load(path.read_text().split("---")[1]) if path.is_file() else {}
    if not header.get("license"):
        raise CheckpointError(f"{path}: names no licence; lightning export ... --license NAME")
