"""Order: every sample once an epoch, whatever the processes; the same from any step on; bad samples counted."""

import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from datamodules.stream.crops import CenterCrop, RandomCrop
from datamodules.stream.loader import Loader
from datamodules.stream.sources import DataError
from datamodules.stream.streams import EpochOrder, EvalStream, Rank, RawBatch, TrainStream
from tests.datamodules.trees import Numbers

CROP = RandomCrop(size=8, scale=4, seed=0)


def stream(source: Numbers, batch_size: int = 3, rank: Rank = Rank(), **options: object) -> TrainStream:
    return TrainStream(source, CROP, batch_size, rank, **options)  # type: ignore[arg-type]


def take(training: TrainStream, batches: int, workers: int = 0, first: int = 0) -> list[RawBatch]:
    return list(islice(Loader(training, workers, first=lambda: first), batches))


def same(one: list[RawBatch], other: list[RawBatch]) -> bool:
    return all(
        a["key"] == b["key"] and a["draw"] == b["draw"] and torch.equal(a["hr"], b["hr"])
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("groups", [[5], [1, 7, 3], [4, 4, 4, 4]])
@pytest.mark.parametrize("window", [0, 3, 1000])
def test_an_epoch_holds_every_sample_once(groups: list[int], window: int) -> None:
    orders = [EpochOrder(groups, seed=1, epoch=epoch, window=window)[:] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(sum(groups)))
    assert window == 0 or any(not np.array_equal(orders[0], order) for order in orders)


def test_a_small_window_keeps_shards_together() -> None:
    order = EpochOrder([100] * 20, seed=0, epoch=0, window=50)[:]
    for start in range(0, 2000, 50):
        assert len(set(order[start : start + 50] // 100)) <= 3


@pytest.mark.parametrize("groups", [[3, 5, 0, 2], [1000] * 13, [100, 1, 5000, 20] * 4])
@pytest.mark.parametrize("window", [0, 1, 100, 5000, 10**6])
def test_parts_of_the_order_are_those_of_sorting_all_keys(groups: list[int], window: int) -> None:
    rng = np.random.default_rng([3, 2])
    starts = np.cumsum([0, *groups])
    every = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in rng.permutation(len(groups))])
    keys = np.arange(len(every)) + rng.uniform(0, window, len(every)) if window < len(every) else None
    expected = rng.permutation(every) if keys is None else every[np.argsort(keys, kind="stable")]

    for place in np.random.default_rng(0).integers(0, len(every), 50).tolist():
        assert EpochOrder(groups, seed=3, epoch=2, window=window)[place] == expected[place]
    np.testing.assert_array_equal(EpochOrder(groups, seed=3, epoch=2, window=window)[:], expected)


def test_a_part_of_a_large_order_needs_little_memory() -> None:
    order = EpochOrder([1000] * 2000, seed=0, epoch=0, window=10_000)
    tracemalloc.start()
    assert 0 <= order[1_999_999] < 2_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2_000_000, "less than the numbers of the records would take as bytes"


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("groups", [[7], [1, 6, 3]])
def test_every_sample_once_an_epoch_over_ranks(groups: list[int], ranks: int) -> None:
    source = Numbers(groups)
    batches = 4 * len(source)
    seen: Counter[tuple[str, int]] = Counter()
    for rank in range(ranks):
        for batch in take(stream(source, batch_size=2, rank=Rank(rank, ranks)), batches):
            seen.update(zip(batch["key"], batch["draw"], strict=True))
    epochs = 2 * ranks * batches // len(source)
    expected = {(f"n/{index}", epoch): 1 for index in range(len(source)) for epoch in range(epochs)}
    assert {place: count for place, count in seen.items() if place[1] < epochs} == expected


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(workers: int) -> None:
    source = Numbers([4, 3])
    assert same(take(stream(source), 7), take(stream(source), 7, workers))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [1, 4])
def test_a_stream_goes_on_at_any_batch(first: int, workers: int) -> None:
    source = Numbers([4, 3])
    assert same(take(stream(source), 8)[first:], take(stream(source), 8 - first, workers, first))


def test_two_ranks_see_what_one_with_twice_the_batch_sees() -> None:
    source = Numbers([9, 2])
    one = take(stream(source, batch_size=4), 5)
    two = [take(stream(source, batch_size=2, rank=Rank(rank, 2)), 5) for rank in range(2)]
    for whole, first, second in zip(one, *two, strict=True):
        assert whole["key"] == first["key"] + second["key"]
        assert torch.equal(whole["hr"], torch.cat([first["hr"], second["hr"]]))


def test_patches_differ_between_epochs_and_seeds() -> None:
    source = Numbers([1])
    patches = [batch["hr"] for batch in take(stream(source, batch_size=1), 6)]
    assert len({patch.numpy().tobytes() for patch in patches}) > 1


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    take(stream(Numbers([4])), 2, workers=1)
    assert torch.equal(torch.rand(1), expected)


def test_a_bad_sample_leaves_its_slot_to_the_next() -> None:
    source, damaged = Numbers([10]), Numbers([10], damaged=[3, 4])
    order = EpochOrder([10], seed=0, epoch=0, window=10_000)
    keys = [key for batch in take(stream(damaged, batch_size=5), 2) for key in batch["key"]]
    assert "n/3" not in keys and "n/4" not in keys
    for slot, index in enumerate(order):
        assert keys[slot] == f"n/{index}" or index in (3, 4)
    assert len(keys) == len(source)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_are_one_clear_error(workers: int) -> None:
    with pytest.raises(
        DataError, match=r"^[67] bad samples, more than 5 of 40, such as n/\d+: broken.*max_bad"
    ) as caught:
        take(stream(Numbers([40], damaged=range(20))), 40, workers)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 3])
def test_bad_samples_are_counted_over_workers_and_restarts(workers: int) -> None:
    """As where `limit_train_batches` ends an epoch of the trainer: the stream is iterated anew each time."""
    training = stream(Numbers([40], damaged=[3, 14, 15, 26, 35, 38]), batch_size=1)
    with pytest.raises(DataError, match="6 bad samples, more than 5 of 40"):
        for start in range(0, 40, 8):
            take(training, 8, workers, first=start)
    assert int(training.bad.sum()) == 6


def test_the_share_of_bad_samples_can_be_raised() -> None:
    assert len(take(stream(Numbers([40], damaged=range(20)), max_bad=0.5), 40)) == 40


def test_no_bad_sample_may_be_allowed() -> None:
    with pytest.raises(DataError, match="1 bad samples, more than 0 of 40, such as n/7: broken"):
        take(stream(Numbers([40], damaged=[7]), max_bad=0.0), 40)


def test_nothing_but_bad_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample of the training set can be used"):
        take(stream(Numbers([3], damaged=range(3))), 1)


def test_images_below_the_crop_are_named() -> None:
    with pytest.raises(DataError, match=r"n/\d+: 4x4 is below the crop of 8x8"):
        take(stream(Numbers([3], size=(4, 4))), 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("count", "ranks"), [(7, 1), (7, 2), (3, 3), (5, 4)])
def test_evaluation_sees_every_image_once(count: int, ranks: int, workers: int) -> None:
    keys = []
    for rank in range(ranks):
        loader = Loader(EvalStream(Numbers([count]), CenterCrop(None, 4), 2, Rank(rank, ranks)), workers)
        batches = list(loader)
        assert len(loader) == len(batches)
        keys += [key for batch in batches for key in batch["key"]]
    assert sorted(keys) == [f"n/{index}" for index in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_never_skips(workers: int) -> None:
    with pytest.raises(DataError, match="an evaluation set must be complete: n/1: broken"):
        list(Loader(EvalStream(Numbers([3], damaged=[1]), CenterCrop(None, 4)), workers))


def test_images_of_different_sizes_in_one_batch_name_the_way_out() -> None:
    source = Numbers([2])
    source.files[1] = Numbers([1], size=(16, 16)).files[0]
    with pytest.raises(DataError, match=r"16x12, 16x16.*val_crop"):
        list(Loader(EvalStream(source, CenterCrop(None, 4), batch_size=2), 0))


def test_training_has_no_length() -> None:
    with pytest.raises(TypeError, match="endless"):
        len(Loader(stream(Numbers([3])), 0))
