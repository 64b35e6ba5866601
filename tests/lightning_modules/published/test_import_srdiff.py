"""SRDiff's published weights, of network and encoder."""

from pathlib import Path

import pytest
import torch

from lightning_modules.checkpoint import CheckpointError
from lightning_modules.published.importing import import_weights
from lightning_modules.published.schedule_table import table
from lightning_modules.srdiff import SRDiff
from tests.parity.harness import Fixture, load
from tests.parity.srdiff_trajectory import srdiff_of

GOLDEN = Path(__file__).resolve().parents[2] / "goldens" / "srdiff" / "srdiff_trajectory_T4.safetensors"


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return load(GOLDEN)


@pytest.fixture
def published(fixture: Fixture, tmp_path: Path) -> Path:
    """A file as the release's: an old-style pickle, the state dict two levels down."""
    path = tmp_path / "model_ckpt_steps_400000.ckpt"
    content = {"global_step": 400000, "optimizer_states": [{}], "state_dict": {"model": fixture.weights}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def fresh(fixture: Fixture) -> SRDiff:
    model = srdiff_of(fixture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def test_import_uses_every_tensor_once_and_invents_none(fixture: Fixture, published: Path) -> None:
    model = fresh(fixture)
    import_weights(model, published)
    names = {"network.": "denoise_fn.", "encoder.": "rrdb."}
    buffers = table(model.process.schedule).keys()  # type: ignore[attr-defined]
    taken = set()
    for key, value in model.state_dict().items():
        prefix = next(prefix for prefix in names if key.startswith(prefix))
        source = names[prefix] + key.removeprefix(prefix)
        assert torch.equal(value, fixture.weights[source]), key
        taken.add(source)
    assert len(buffers) == 12
    assert taken | set(buffers) == set(fixture.weights) and len(fixture.weights) == 396


def test_import_refuses_another_schedule(fixture: Fixture, tmp_path: Path) -> None:
    other = dict(fixture.weights)
    other["betas"] = other["betas"] * 0.5
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth: betas: the file has 4 values"):
        import_weights(fresh(fixture), tmp_path / "other.pth")


def test_import_names_keys_that_differ(fixture: Fixture, tmp_path: Path) -> None:
    other = {key: value for key, value in fixture.weights.items() if not key.startswith("denoise_fn.mid_block2")}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth: .*missing network.mid_block2"):
        import_weights(fresh(fixture), tmp_path / "other.pth")
