"""Shards behind fsspec's schemes, and the cache that they are kept in."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from datamodules.prepare.pack import pack_folder
from datamodules.shard_folder import ShardFolder
from datamodules.stream.remote import CACHE_SIZE, Unreachable, fetched, make_room, read
from datamodules.stream.shards import ShardSource, list_splits, open_split
from datamodules.stream.sources import BadSample
from tests.datamodules.stream.test_shards import save

BYTES = 1000  # in a file of these tests


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def bucket(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A packed set of six images in three shards at `memory://bucket`."""
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    for index in range(6):
        save(tmp_path / "in" / f"{index}.png", index)
    pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), "x", workers=1, per_shard=2)
    memory.put(str(tmp_path / "out") + "/", "/bucket/", recursive=True)
    return "memory://bucket"


def stored(system: Any, *names: str) -> list[str]:
    """Files of BYTES bytes in memory, by their URLs."""
    for name in names:
        system.pipe_file(f"/{name}", name[0].encode() * BYTES)
    return [f"memory://{name}" for name in names]


def fetch(url: str, cache: Path, timeout: float, digest: str | None = None) -> Path:
    with fetched(url, cache, timeout, digest) as path:
        return path


def test_a_set_in_a_bucket_is_read_like_one_at_a_url(bucket: str, tmp_path: Path) -> None:
    assert list(list_splits(bucket)) == ["x-train"]
    data = ShardFolder(bucket, train="x-train", val="x-train", crop=8, batch_size=6, num_workers=0)
    assert sorted(next(iter(data.train_dataloader()))["key"]) == [f"x/{index}" for index in range(6)]
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 3


def test_shards_of_a_bucket_can_be_named_with_braces(bucket: str) -> None:
    data = ShardFolder("", val=f"{bucket}/x-train-{{000000..000002}}.tar", num_workers=0)
    assert [batch["key"] for batch in data.val_dataloader()] == [[f"x/{index}"] for index in range(6)]


def test_a_local_folder_as_a_url_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "in" / "a.png", 0)
    pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), "x", workers=1)
    source = open_split(f"file://{tmp_path}/out", "x-train")
    assert source.record(0).key == "x/a"


def test_an_absent_object_is_named_at_once(memory: Any, tmp_path: Path) -> None:
    source = ShardSource(["memory://bucket/gone.tar"], "x", counts=[1], cache=tmp_path)
    began = time.monotonic()
    with pytest.raises(BadSample, match=r"gone\.tar"):
        source.record(0)
    assert time.monotonic() - began < 10  # it is not asked for again, for minutes


def test_a_bucket_that_fails_is_asked_again(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (url,) = stored(memory, "a.tar")
    open_file, failures = type(memory).open, [RuntimeError("the library's own"), TimeoutError("no answer")]

    def shaky(self: Any, *args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(type(memory), "open", shaky)
    with caplog.at_level("WARNING"):
        assert fetch(url, tmp_path, timeout=1).read_bytes() == b"a" * BYTES
    assert [record.message.split(" failed")[0] for record in caplog.records] == [
        "memory://a.tar: attempt 1",
        "memory://a.tar: attempt 2",
    ]

    failures += [RuntimeError("the library's own")] * 2
    monkeypatch.setenv("DIFFSR_PATIENCE", "0")
    with pytest.raises(Unreachable, match="the library's own"):
        read(url, timeout=1)


def test_a_wrong_digest_and_missing_bytes_are_refused(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (url,) = stored(memory, "a.tar")
    with pytest.raises(OSError, match=r"a\.tar: its sha256 is \w+, not 00"):
        fetch(url, tmp_path, timeout=1, digest="00")

    monkeypatch.setenv("DIFFSR_PATIENCE", "0")
    monkeypatch.setattr(type(memory), "size", lambda self, path: BYTES + 1)
    with pytest.raises(Unreachable, match=f"after {BYTES} of {BYTES + 1} bytes"):
        fetch(url, tmp_path, timeout=1)
    assert not list(tmp_path.glob("*.tar"))


def test_the_cache_keeps_what_was_used_last(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_SIZE, str(2.5 * BYTES / 1e9))
    urls = stored(memory, "a.tar", "b.tar", "c.tar")
    names = {url: fetch(url, tmp_path, timeout=1) for url in urls[:2]}
    for age, url in ((200, urls[0]), (100, urls[1])):
        os.utime(names[url], (time.time() - age,) * 2)
    with fetched(urls[0], tmp_path, timeout=1) as path:  # so that b is the one used longest ago
        assert path.read_bytes() == b"a" * BYTES

    with caplog.at_level("WARNING"):
        names[urls[2]] = fetch(urls[2], tmp_path, timeout=1)
    assert [names[url].exists() for url in urls] == [True, False, True]
    assert f"{tmp_path} is full" in caplog.text and CACHE_SIZE in caplog.text


def test_a_removed_shard_is_downloaded_again(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_SIZE, "0")
    source = open_split(bucket, "x-train")
    for _ in range(2):
        assert [source.record(index).key for index in range(6)] == [f"x/{index}" for index in range(6)]


def test_a_shard_in_use_is_never_removed(memory: Any, tmp_path: Path) -> None:
    (first,) = stored(memory, "a.tar")
    with fetched(first, tmp_path, timeout=1) as path:
        make_room(tmp_path, 0)
        assert path.exists()
        in_another_process(make_room, tmp_path, 0)
        assert path.exists() and path.read_bytes() == b"a" * BYTES
    in_another_process(make_room, tmp_path, 0)
    assert not path.exists()


def in_another_process(function: Any, *arguments: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_processes_that_share_a_small_cache_read_what_they_asked_for(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_SIZE, "0")

    def worker(seed: int) -> None:
        source = open_split(bucket, "x-train")
        for turn in range(30):
            index = (turn * (seed + 1) + seed) % 6
            assert source.record(index).key == f"x/{index}"

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=worker, args=(seed,)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_limit_that_is_no_number_is_named(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_SIZE, "much")
    (url,) = stored(memory, "a.tar")
    with pytest.raises(ValueError, match="DIFFSR_CACHE_SIZE: must be a number of GB, got much"):
        fetch(url, tmp_path, timeout=1)
