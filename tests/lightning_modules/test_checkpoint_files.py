"""Checkpoints on the disk: whole or absent, checked when they are read, and the one before where one is damaged."""

import errno
import os
import random
from pathlib import Path

import pytest
import torch

from lightning_modules import whole_file
from lightning_modules.checkpoint import CheckpointError, newest_whole, read_checkpoint
from lightning_modules.checkpoint_io import WholeCheckpointIO


def content(value: float) -> dict[str, object]:
    return {"state_dict": {"weight": torch.full((40, 50), value)}, "global_step": 3}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(content(1.5), path)
    assert torch.equal(WholeCheckpointIO().load_checkpoint(path)["state_dict"]["weight"], torch.full((40, 50), 1.5))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_named_and_the_checkpoint_before_stays(
    reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(content(1.0), path)

    def fail(descriptor: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(whole_file.os, "fsync", fail)
    with pytest.raises(OSError, match=rf"last\.ckpt: cannot be written \({os.strerror(reason)}\)"):
        WholeCheckpointIO().save_checkpoint(content(2.0), path)
    assert float(read_checkpoint(path)["state_dict"]["weight"][0, 0]) == 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_no_flipped_bit_gives_other_weights(tmp_path: Path) -> None:
    chance, good, path = random.Random(0), tmp_path / "good.ckpt", tmp_path / "flipped.ckpt"
    WholeCheckpointIO().save_checkpoint(content(1.0), good)
    bytes_, found = good.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(bytes_)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = read_checkpoint(path)
        except CheckpointError as error:
            found += str(path) in str(error)
        else:
            assert torch.equal(loaded["state_dict"]["weight"], torch.ones(40, 50)) and loaded["global_step"] == 3
    assert found > 40  # the others lie in what the archive pads with


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(damage: str, tmp_path: Path) -> None:
    for age, name in enumerate(("last.ckpt", "step=4.ckpt", "step=2.ckpt")):
        WholeCheckpointIO().save_checkpoint(content(float(age)), tmp_path / name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    last, bytes_ = tmp_path / "last.ckpt", (tmp_path / "last.ckpt").read_bytes()
    changed = bytearray(bytes_)
    changed[len(changed) // 2] ^= 1
    last.write_bytes({"cut": bytes_[:-100], "empty": b"", "flipped": bytes(changed), "text": b"<html>"}[damage])
    os.utime(last, (1000, 1000))
    with pytest.warns(UserWarning, match=r"last\.ckpt: is damaged.*the checkpoint before it is taken"):
        assert newest_whole(tmp_path) == tmp_path / "step=4.ckpt"

    for path in tmp_path.glob("step=*"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="holds no checkpoint that can be read"):
        newest_whole(tmp_path)
