"""SRDiff as a module: the encoder, what is computed once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.checkpoint import CheckpointError, load_network, published_state
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.srdiff import SRDiff
from tests.parity.harness import Fixture, load
from tests.parity.srdiff_trajectory import srdiff_of

GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "srdiff" / "srdiff_trajectory_T4.safetensors"


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return load(GOLDEN)


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
