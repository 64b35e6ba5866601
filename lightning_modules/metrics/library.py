"""Scores that other packages compute, built on first use from weights that are found here."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.metrics.score import UNAVAILABLE, MissingPackageError, NoReferenceScore
from lightning_modules.weight_files import WeightFile, WeightsError, cache_folder, obtain


class LibraryScore(NoReferenceScore):
    """A no-reference score of another package, one image at a time, in float32.

    A subclass names the packages and files that it needs, and writes `build`.

    Args:
        weights: File of the main weights, the first of `needed`; by default found or downloaded, see `weights.obtain`.
        optional: See `Loadable`.

    Attributes:
        packages: What must be importable.
        extra: The extra of this project that installs it.
        needed: The files, by where the package looks for them in torch's hub folder.
    """

    packages: tuple[str, ...]
    extra: str
    needed: Mapping[str, WeightFile] = {}

    def __init__(self, weights: str | None = None, *, optional: bool = False) -> None:
        super().__init__(optional=optional)
        self.weights = weights
        self.network: nn.Module | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """What makes of one image `[1,3,H,W]` in [0, 1] its score."""

    def load(self) -> None:
        """See `Loadable.load`."""
        if self.network is not None:
            return
        if self.weights is not None and not self.needed:
            raise WeightsError(f"{self.name}: its package reads its weights itself, so `weights` cannot be given")

        given = [self.weights, *[None] * len(self.needed)]
        with torch_hub(self.name) as hub:
            require(self.packages, self.extra, self.name)
            for (place, file), path in zip(self.needed.items(), given, strict=False):
                link(self.record(obtain(file, path, needed_by=self.name)), hub / place)
            self.network = self.build().requires_grad_(False).eval()

    @torch.no_grad()
    def judge(self, image: Tensor) -> Tensor:
        """See `NoReferenceScore.judge`."""
        assert self.network is not None, f"{self.name}: load() comes before the first image"
        scores = [torch.as_tensor(self.network(single[None].float())).view(()) for single in image]
        return torch.stack([score.to(image.device) for score in scores])


def require(packages: tuple[str, ...], extra: str, needed_by: str) -> None:
    """Imports packages.

    Raises:
        MissingPackageError: one cannot be imported.
    """
    for package in packages:
        try:
            import_module(package)
        except (ImportError, RuntimeError) as error:  # torchvision built for another torch raises RuntimeError
            raise MissingPackageError(
                f"{needed_by} needs the package {package}, which cannot be imported ({error}): install this project's "
                f"extra `{extra}`, with the torchvision that matches torch {torch.__version__}"
            ) from error


@contextmanager
def torch_hub(needed_by: str) -> Iterator[Path]:
    """A folder of our own in the place of torch's hub, from which packages read while a score is built.

    Nothing that is read inside executes code, unless a package does so by itself.

    Raises:
        WeightsError: a package failed inside, for instance because it tried to download something else.
    """
    hub = cache_folder() / "hub"
    folder_before, safe_before = torch.hub.get_dir(), os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    torch.hub.set_dir(hub)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

    try:
        yield hub
    except UNAVAILABLE:
        raise
    except Exception as error:  # other packages raise what they like
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{needed_by}: its package could not build it ({reason}). Without a network, copy the package's cache from "
            "a machine where this score has run once"
        ) from error
    finally:
        torch.hub.set_dir(folder_before)
        os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        if safe_before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = safe_before


def link(path: Path, place: Path) -> None:
    """Makes `place` name a file, in one step, since other processes may be reading."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f"{place.name}.{os.getpid()}")
    fresh.symlink_to(path.resolve())
    fresh.replace(place)
