"""The bundled photographs: written once, split by photograph, whole in validation."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from datamodules.photos import TRAIN, VAL, Photos
from datamodules.stream.shards import ShardSource, open_split
from datamodules.stream.sources import Source


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    data = Photos(root=str(tmp_path_factory.mktemp("photos")), crop=96, batch_size=8, num_workers=0)
    data.prepare_data()
    return data


def photographs(source: Source) -> set[str]:
    return {
        source.record(index).key.removeprefix("photos/").rstrip("0123456789").rstrip("_")
        for index in range(len(source))
    }


def test_no_photograph_is_in_both_splits(photos: Photos) -> None:
    assert photographs(photos.source("train")) == {Path(name).stem for name in TRAIN}
    assert photographs(photos.source("val")) == {Path(name).stem for name in VAL} == {"chelsea", "coffee"}


def test_validation_photographs_are_whole(photos: Photos) -> None:
    source = photos.source("val")
    shown = {source.record(index).key: source.sample(index, paired=False).hr for index in range(2)}
    assert np.array_equal(shown["photos/chelsea"], skimage.data.chelsea())
    assert np.array_equal(shown["photos/coffee"], skimage.data.coffee())


def test_the_shards_are_written_once(photos: Photos) -> None:
    before = {path: path.stat().st_mtime_ns for path in photos.folder.iterdir() if path.name[0] != "."}
    photos.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in photos.folder.iterdir() if path.name[0] != "."} == before
    assert isinstance(open_split(str(photos.folder), "photos-train"), ShardSource)


def test_batches(photos: Photos) -> None:
    for raw in islice(photos.train_dataloader(), 2):
        batch = photos.on_after_batch_transfer(raw, 0)
        assert batch["hr"].shape == batch["up"].shape == (8, 3, 96, 96)
        assert batch["lr"].shape == (8, 3, 24, 24)
        assert float(batch["hr"].min()) >= -1 and float(batch["hr"].max()) <= 1
        assert all(key.startswith("photos/") for key in batch["key"])
    sizes = {raw["key"][0]: tuple(raw["hr"].shape[-2:]) for raw in photos.val_dataloader()}
    assert sizes == {"photos/chelsea": (300, 448), "photos/coffee": (400, 600)}


def test_a_crop_larger_than_the_tiles_names_the_way_out() -> None:
    with pytest.raises(ValueError, match="crop: 480 is larger than the tiles of 240; raise `tile_size` too"):
        Photos(crop=480)
