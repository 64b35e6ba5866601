import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from callbacks.nan_guard import NaNGuard, NonFiniteLossError
from datamodules.batch import Batch
from tests.callbacks.small import SmallData, SmallResolver, batch_of, trainer_of


class Failing(SmallResolver):
    """Its loss is infinite at the third batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"loss": outputs["loss"] / (0 if batch_idx == 2 else 1)}


def test_the_run_stops_and_keeps_the_batch_for_replay(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1, save_top_k=-1)
    trainer = trainer_of(tmp_path, NaNGuard(), saver, max_epochs=1, enable_checkpointing=True)
    with pytest.raises(NonFiniteLossError, match=r"inf at step 3 on train/04, train/05\. .*step-000003-rank-0\.json"):
        trainer.fit(Failing(), SmallData())

    record = json.loads((tmp_path / "nan/step-000003-rank-0.json").read_text())
    assert record["key"] == ["train/04", "train/05"]
    assert record["t"] == [0.5, 0.5]
    assert (record["rank"], record["epoch"], record["batch"]) == (0, 0, 2)
    weights = torch.load(tmp_path / "nan/step-000003-rank-0.ckpt", weights_only=True)["state_dict"]
    assert weights.keys() == Failing().state_dict().keys()
    assert all(value.isfinite().all() for value in weights.values())  # before the optimizer took the step
    kept, batch = load_file(tmp_path / "nan/step-000003-rank-0.safetensors"), batch_of("train/04", "train/05")
    assert kept.keys() == {"hr", "lr", "up"}
    assert torch.equal(kept["hr"], batch["hr"])
    assert torch.equal(kept["up"], batch["up"])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # none of the bad step


def test_a_finite_run_goes_through_and_leaves_nothing(tmp_path: Path) -> None:
    trainer_of(tmp_path, NaNGuard(), max_epochs=1).fit(SmallResolver(), SmallData())
    assert not (tmp_path / "nan").exists()
