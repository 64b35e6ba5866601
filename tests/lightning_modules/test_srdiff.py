"""SRDiff as a module: the published checkpoint, the encoder, what is computed once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError, import_published, load_network, published_state
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.srdiff import SRDiff
from tests.parity.harness import Fixture, load
from tests.parity.srdiff_trajectory import srdiff_of

GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "srdiff" / "srdiff_trajectory_T4.safetensors"


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
    import_published(model, published)
    names = {"network.": "denoise_fn.", "encoder.": "rrdb."}
    buffers = model.process.schedule.table().keys()  # type: ignore[union-attr, operator]
    taken = set()
    for key, value in model.state_dict().items():
        prefix = next(prefix for prefix in names if key.startswith(prefix))
        source = names[prefix] + key.removeprefix(prefix)
        assert torch.equal(value, fixture.weights[source]), key
        taken.add(source)
    assert len(buffers) == 12
    assert taken | set(buffers) == set(fixture.weights) and len(fixture.weights) == 396


def test_import_refuses_another_schedule(fixture: Fixture, published: Path, tmp_path: Path) -> None:
    other = dict(fixture.weights)
    other["betas"] = other["betas"] * 0.5
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth: betas: the file has 4 values"):
        import_published(fresh(fixture), tmp_path / "other.pth")


def test_import_names_keys_that_differ(fixture: Fixture, tmp_path: Path) -> None:
    other = {key: value for key, value in fixture.weights.items() if not key.startswith("denoise_fn.mid_block2")}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth: .*missing network.mid_block2"):
        import_published(fresh(fixture), tmp_path / "other.pth")


def test_the_encoder_reads_a_published_rrdb_file(fixture: Fixture, tmp_path: Path) -> None:
    weights = {key.removeprefix("rrdb."): value for key, value in fixture.weights.items() if key.startswith("rrdb.")}
    torch.save({"state_dict": {"model": weights}}, tmp_path / "rrdb.ckpt")
    encoder = RRDBNet(4, fixture.config["rrdb_num_feat"], fixture.config["rrdb_num_block"])
    load_network(encoder, tmp_path / "rrdb.ckpt")
    assert all(torch.equal(value, weights[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(CheckpointError, match="does not fit RRDBNet"):
        load_network(RRDBNet(4, 16, 2), tmp_path / "rrdb.ckpt")
    assert published_state(tmp_path / "rrdb.ckpt").keys() == weights.keys()


def test_the_condition_is_computed_once_an_image(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = srdiff_of(fixture), []
    features = model.encoder.features

    def counted(lr: Tensor) -> list[Tensor]:
        calls.append(lr.shape)
        return features(lr)

    monkeypatch.setattr(model.encoder, "features", counted)
    lr = fixture.inputs["img_lr"]
    model.super_resolve(Batch(lr=lr, up=fixture.inputs["img_lr_up"], key=["a", "b"]))
    assert len(calls) == 1


def test_a_frozen_encoder_without_weights_is_refused(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    model = srdiff_of(fixture)
    model.freeze_encoder = True
    monkeypatch.setattr(SRDiff, "trainer", type("Trainer", (), {"ckpt_path": None})())
    with pytest.raises(ValueError, match=r"configs/rrdb.yaml"):
        model.setup("fit")
