"""ONNX files of one-step methods, against PyTorch; methods that are none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.checkpoint import CheckpointError, write_checkpoint
from lightning_modules.config import configured_model, load_method
from lightning_modules.exporting import onnx_graph
from lightning_modules.exporting.export import export
from lightning_modules.exporting.verify import verify
from tests.tiny.experiments import CONFIGS, tiny_overlays


def checkpoint(folder: Path, name: str) -> Path:
    files = [CONFIGS / f"{name}.yaml", *tiny_overlays(CONFIGS / f"{name}.yaml")]
    (folder / "composed.yaml").write_text(yaml.safe_dump({"compose": [str(file) for file in files]}))
    write_checkpoint(*configured_model(folder / "composed.yaml"), folder / "net.ckpt")
    return folder / "net.ckpt"


@pytest.fixture
def rrdb(tmp_path: Path) -> Iterator[Path]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    yield checkpoint(tmp_path, "rrdb")


def test_the_file_computes_what_the_method_does_at_any_size(
    rrdb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(rrdb, tmp_path / "out", onnx=True)
    model, lr = load_method(tmp_path / "out"), torch.rand(3, 3, 17, 30)
    with torch.no_grad():
        expected = ((model.network(lr * 2 - 1) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(onnx_graph.run(tmp_path / "out" / "model.onnx", lr), expected, rtol=0, atol=1e-4)
    assert "onnxruntime equals PyTorch" in (tmp_path / "out" / "README.md").read_text()
    assert verify(tmp_path / "out")
    assert "model.onnx, onnxruntime, cpu; tolerance" in capsys.readouterr().out


def test_a_file_that_computes_something_else_is_not_kept(
    rrdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = onnx_graph.run
    monkeypatch.setattr(onnx_graph, "run", lambda path, lr: computed(path, lr) + 0.01)
    with pytest.raises(CheckpointError, match=r"onnxruntime's image differs from PyTorch's by up to 0\.01"):
        export(rrdb, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_without_onnxruntime_it_is_said_that_nothing_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    said = onnx_graph.compared_with_pytorch(Path("model.onnx"), torch.nn.Identity())
    assert said == "not compared with PyTorch, onnxruntime is not installed (pip install 'diffsr[onnx]')"


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"--onnx: needs onnx and onnxscript: pip install 'diffsr\[onnx\]'"):
        export(checkpoint(tmp_path, "rrdb"), tmp_path / "out", onnx=True)


def test_a_method_of_several_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--onnx: an image of SR3 is not one evaluation.*\(ancestral-\d+\)"):
        export(checkpoint(tmp_path, "sr3"), tmp_path / "out", onnx=True)
