"""Scores of other packages: what they need, where it is found, and what is said where it is missing."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.metrics.arniqa import ARNIQA
from lightning_modules.metrics.clip_iqa import CLIPIQA
from lightning_modules.metrics.learned_quality import VARIANTS, PyIQA
from lightning_modules.metrics.library import LibraryScore
from lightning_modules.metrics.score import MissingPackageError
from lightning_modules.weight_files import WeightFile, WeightsError


class Scale(nn.Module):
    """Reads its only weight from torch's hub folder, as packages do."""

    def __init__(self) -> None:
        super().__init__()
        path = Path(torch.hub.get_dir()) / "package" / "scale.pth"
        self.weight = nn.Parameter(torch.load(path, weights_only=False)["weight"])

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[0] == 1 and image.dtype == torch.float32
        return image.mean() * self.weight


class Published(LibraryScore):
    name, higher_is_better, packages, extra = "published", True, ("torch",), "none"
    needed = {"package/scale.pth": WeightFile("scale.pth", "https://example.invalid/scale.pth", "")}  # noqa: RUF012

    def build(self) -> nn.Module:
        return Scale()


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(tmp_path))
    return tmp_path


def test_a_package_finds_our_files_where_it_looks_for_them(cache: Path) -> None:
    torch.save({"weight": torch.tensor(3.0)}, cache / "scale.pth")
    hub = torch.hub.get_dir()
    score = Published()
    score.load()
    image = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(score(image), 3 * image.mean(dim=(1, 2, 3)).float())
    assert torch.hub.get_dir() == hub
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert list(score.files) == ["scale.pth"]
    assert not any(parameter.requires_grad for parameter in score.parameters())


def test_a_given_file_takes_the_place_of_the_published_one(cache: Path) -> None:
    torch.save({"weight": torch.tensor(3.0)}, cache / "scale.pth")
    torch.save({"weight": torch.tensor(5.0)}, cache / "mine.pth")
    for weights, factor in ((None, 3), (str(cache / "mine.pth"), 5)):
        score = Published(weights)
        score.load()
        assert float(score(torch.ones(1, 3, 4, 4))) == factor


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("executed",))


def test_nothing_in_a_file_is_executed_though_the_package_would(cache: Path) -> None:
    torch.save({"weight": Harmful()}, cache / "scale.pth")
    with pytest.raises(WeightsError, match=r"^published: its package could not build it"):
        Published().load()


def test_what_a_package_downloads_by_itself_is_our_error() -> None:
    class Greedy(Published):
        needed = {}  # noqa: RUF012

        def build(self) -> nn.Module:
            raise RuntimeError("<urlopen error>\nand much more")

    with pytest.raises(WeightsError, match=r"could not build it \(<urlopen error>\)\. Without a network, copy"):
        Greedy().load()
    with pytest.raises(WeightsError, match="published: its package reads its weights itself"):
        Greedy("file.pth").load()


@pytest.mark.parametrize(
    ("score", "package", "extra"),
    [
        (PyIQA("musiq"), "pyiqa", "pyiqa"),
        (ARNIQA(), "torchvision", "arniqa"),
        (CLIPIQA(), "piq", "clip_iqa"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_missing_package_names_the_extra(
    score: LibraryScore, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"^{score.name} needs the package {package}.*extra `{extra}`"):
        score.load()


def test_scores_go_by_the_exact_names_of_pyiqa() -> None:
    assert {PyIQA(variant).name for variant in VARIANTS} == set(VARIANTS)
    with pytest.raises(ValueError, match=r"variant must be one of musiq, .*; got topiq"):
        PyIQA("topiq")


def test_hashes_are_those_in_the_names_of_files() -> None:
    files = {variant: list(PyIQA(variant).needed.values()) for variant in VARIANTS}
    assert files["maniqa-pipal"][0].sha256 == "ae6d356b"
    assert files["clipiqa+"][0].sha256 == "603f3273"
    assert files["liqe"][0].sha256 == ""
    assert files["liqe"][1].url.split("/")[-2] == files["liqe"][1].sha256
    assert list(PyIQA("clipiqa").needed) == ["clip/RN50.pt"]
