"""The wheel: built, installed into an environment of its own, and used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightning_modules.checkpoint import own_state, write_export
from lightning_modules.config import configured_model
from lightning_modules.config_files import CONFIGS
from tests.tiny.experiments import tiny_overlays

ROOT = CONFIGS.parent
PACKAGES = ("lightning_modules", "datamodules", "callbacks", "configs")
ENTRY = {"purpose": "tests", "licence": "MIT", "source": "here", "packaged": "tiny"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this project, in which `real-x4` is a tiny packaged model."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")

    files = [CONFIGS / "rrdb.yaml", *tiny_overlays(CONFIGS / "rrdb.yaml")]
    (folder / "rrdb.yaml").write_text(yaml.safe_dump({"compose": [str(file) for file in files]}))
    torch.manual_seed(0)
    model, config = configured_model(folder / "rrdb.yaml")
    write_export(own_state(model), config, folder / "tree" / "lightning_modules" / "packaged" / "tiny")
    (folder / "tree" / "configs" / "weights" / "real-x4.yaml").write_text(yaml.safe_dump(ENTRY))

    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "tree")]
    run([sys.executable, "-m", "pip", *build], folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that holds the wheel, and borrows what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)], folder)
    return folder / "bin"


def run(command: list[str], folder: Path) -> str:
    """What a command prints, in an environment that knows nothing of this project's folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_holds_every_config_the_packaged_weights_and_the_marks_of_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    configs = {path.relative_to(ROOT).as_posix() for path in CONFIGS.rglob("*") if path.is_file()}
    assert configs <= held, sorted(configs - held)
    code = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert code <= held, sorted(code - held)
    assert {f"lightning_modules/packaged/tiny/{name}" for name in ("model.safetensors", "config.yaml")} <= held
    assert {f"{name}/py.typed" for name in PACKAGES[:3]} <= held
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/"))]


def test_the_packaged_model_enlarges_from_another_folder(installed: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 16), "red").save(tmp_path / "photo.png")
    said = run([str(installed / "lightning"), "predict", "--input", "photo.png", "--output", "out"], tmp_path)
    assert "no --ckpt_path is given: enlarging with real-x4" in said
    assert Image.open(tmp_path / "out" / "photo.png").size == (80, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photo.png"]


def test_the_names_and_the_configs_are_found_from_another_folder(installed: Path, tmp_path: Path) -> None:
    listed = run([str(installed / "diffsr"), "weights"], tmp_path)
    assert "real-x4 (in the package)" in listed and "RealESRGAN_x4plus" in listed
    printed = run(
        [str(installed / "lightning"), "fit", "--config", "configs/quickstart.yaml", "--print_config"], tmp_path
    )
    assert f"configs/quickstart.yaml: is not in this folder; taken from {installed.parent}" in printed
    assert "class_path: lightning_modules.srdiff.SRDiff" in printed


def test_a_config_of_the_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning_modules.config_files import found, layers

    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "srdiff.yaml").write_text("data: {}\n")
    assert list(layers(Path("configs/srdiff.yaml"))) == [Path("configs/srdiff.yaml")]
    assert not caplog.text
    assert found(Path("configs/region/yoda.yaml")) == CONFIGS / "region" / "yoda.yaml"
    assert found(Path("mine/region/yoda.yaml")) == Path("mine/region/yoda.yaml")
    assert found(Path("configs/none.yaml")) == Path("configs/none.yaml")
