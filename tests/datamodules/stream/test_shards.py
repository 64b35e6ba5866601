"""Shards, whole and damaged, here and behind a URL: what is read, what is refused, and what it says."""

import functools
import gzip
import http.server
import json
import logging
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from datamodules.prepare.pack import pack_folder
from datamodules.shard_folder import ShardFolder
from datamodules.stream.crops import RandomCrop
from datamodules.stream.loader import Loader
from datamodules.stream.shards import ShardSource, expand_braces, open_split, read_index
from datamodules.stream.sources import BadSample, ConcatSource, DataError
from datamodules.stream.streams import TrainStream
from tests.datamodules.trees import picture, png, save, write_tar


def images(count: int, first: int = 0, size: tuple[int, int] = (24, 32)) -> dict[str, bytes]:
    return {f"{index:04d}.hr.png": png(picture(index, *size)) for index in range(first, first + count)}


def shards(folder: Path, *counts: int) -> list[str]:
    first = [sum(counts[:number]) for number in range(len(counts))]
    return [
        str(write_tar(folder / f"x-train-{number:06d}.tar", images(count, first[number])))
        for number, count in enumerate(counts)
    ]


def describe(folder: Path, counts: dict[str, int]) -> None:
    listed = [{"file": file, "samples": samples} for file, samples in counts.items()]
    (folder / "dataset.json").write_text(json.dumps({"splits": [{"name": "x", "split": "train", "shards": listed}]}))


def test_samples_are_read_by_number(tmp_path: Path) -> None:
    source = ShardSource(shards(tmp_path, 2, 3), "x")
    assert source.groups == [2, 3] and len(source) == 5
    for index in range(5):
        sample = source.sample(index, paired=False)
        assert sample.key == f"x/{index:04d}"
        assert np.array_equal(sample.hr, np.asarray(picture(index)))


def test_a_source_survives_pickling(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(ShardSource(shards(tmp_path, 2), "x")))
    assert source.record(1).key == "x/0001"


def test_pairs_and_plain_names(tmp_path: Path) -> None:
    members = {
        "a.hr.jpg": png(picture(0)),
        "a.lr.png": png(picture(1, 6, 8)),
        "a.json": b"{}",
        "b.PNG": png(picture(2)),
    }
    source = ShardSource([str(write_tar(tmp_path / "x.tar", members))], "x")
    assert source.sample(0, paired=True).lr is not None
    assert source.sample(1, paired=False).key == "x/b"
    with pytest.raises(BadSample, match=r"x/b: its LR partner is missing \(pack HR with lr, .* set paired to false"):
        source.sample(1, paired=True)


def test_joined_sources_are_numbered_on(tmp_path: Path) -> None:
    both = ConcatSource([ShardSource(shards(tmp_path / "a", 2, 1), "a"), ShardSource(shards(tmp_path / "b", 3), "b")])
    assert both.groups == [2, 1, 3]
    assert [both.record(index).key for index in (2, 3, 5)] == ["a/0002", "b/0000", "b/0002"]
    assert "b/x-train-000000.tar sample 2" in both.describe(5)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_in_a_shard_is_executed_or_even_read(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb())
    members = {"a.hr.png": png(picture(0)), "a.pyd": bomb, "a.pth": bomb, "a.hr.pickle": bomb, "b.hr.png": bomb}
    source = ShardSource([str(write_tar(tmp_path / "x.tar", members))], "x")
    assert list(vars(source.record(0))) == ["key", "hr", "lr"] and source.record(0).hr == members["a.hr.png"]
    with pytest.raises(BadSample, match=r"x/b \(HR\): not an image"):
        source.sample(1, paired=False)


DAMAGE = {
    "zero bytes": ("a.hr.png", b"", r"x/a \(HR\): zero bytes"),
    "truncated image": ("a.hr.png", png(picture(0, 60, 60))[:300], r"x/a \(HR\): .*truncated"),
    "wrong extension": ("a.hr.txt", png(picture(0)), r"x\.tar a: no HR image.*a\.hr\.png \(found hr\.txt\)"),
    "no HR": ("a.lr.png", png(picture(0)), r"x\.tar a: no HR image.*\(found lr\)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_sample_is_named(damage: str, tmp_path: Path) -> None:
    name, content, message = DAMAGE[damage]
    source = ShardSource([str(write_tar(tmp_path / "x.tar", {name: content, **images(1)}))], "x")
    with pytest.raises(BadSample, match=message):
        source.sample(0, paired=False)
    assert source.sample(1, paired=False).key == "x/0000"


def test_a_duplicate_key_is_named(tmp_path: Path) -> None:
    source = ShardSource(
        [str(write_tar(tmp_path / "x.tar", [*images(2).items(), ("0001.hr.png", png(picture(7)))]))], "x"
    )
    assert len(source) == 2
    with pytest.raises(BadSample, match=r"x\.tar 0001: holds the same image member twice"):
        source.record(1)


def test_keys_that_stand_in_two_shards_are_found(tmp_path: Path) -> None:
    urls = [str(write_tar(tmp_path / f"x-{name}.tar", images(2, first))) for name, first in (("a", 0), ("b", 1))]
    assert ShardSource(urls, "x").duplicates() == ["x/0001"]
    with pytest.raises(DataError, match="val: the set holds x/0001 twice; "):
        ShardFolder(str(tmp_path), val=f"{tmp_path}/x-{{a,b}}.tar").val_dataloader()
    source = ShardSource(urls, "x")
    assert [source.record(index).key for index in (0, 1, 3)] == ["x/0000", "x/0001", "x/0002"]
    with pytest.raises(BadSample, match=r"x-b\.tar 0001: .*x-a\.tar has this key too \(duplicate key\)"):
        source.record(2)


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_a_truncated_tar_gives_what_is_whole_and_names_the_rest(kept: float, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x-train-000000.tar", images(10, size=(60, 80)))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    describe(tmp_path, {path.name: 10})
    source = open_split(str(tmp_path), "x-train")
    whole = 0
    for index in range(10):
        try:
            source.sample(index, paired=False)
            whole += 1
        except BadSample as error:
            assert path.name in str(error) and "truncated" in str(error)
    assert 10 * kept - 2 <= whole <= 10 * kept + 1
    assert read_index(path).damage


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"<html>not found</html>" * 100)
    describe(tmp_path, {"x.tar": 3})
    with pytest.raises(BadSample, match=r"x\.tar sample 0 is missing: truncated or not an uncompressed tar"):
        open_split(str(tmp_path), "x-train").record(0)


def test_a_vanished_shard_is_counted_and_then_one_clear_error(tmp_path: Path) -> None:
    urls = shards(tmp_path, 10, 10)
    stream = TrainStream(ShardSource(urls, "x"), RandomCrop(8, 4, seed=0), batch_size=2)
    batches = iter(Loader(stream, 0))
    next(batches)
    Path(urls[0]).unlink()
    with pytest.raises(DataError, match=r"6 bad samples, more than 5 of 20, .*x-train-000000\.tar.*No such file"):
        list(islice(batches, 20))


def test_absent_shards_are_named_at_the_start(tmp_path: Path) -> None:
    urls = [*shards(tmp_path, 1), str(tmp_path / "x-train-000001.tar")]
    with pytest.raises(FileNotFoundError, match=r"x-train-000001\.tar \(1 of 2 are missing\)"):
        ShardSource(urls, "x")


def test_braces() -> None:
    assert expand_braces("a/x-{000008..000010}.tar") == ["a/x-000008.tar", "a/x-000009.tar", "a/x-000010.tar"]


@pytest.mark.parametrize("text", ["", "[]", '{"splits": [{}]}'])
def test_a_broken_description_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(FileNotFoundError, match=r"dataset\.json: is not the description"):
        open_split(str(tmp_path), "x-train")


def test_an_absent_set_names_what_is_there_and_the_way_out(tmp_path: Path) -> None:
    describe(tmp_path, {})
    data = ShardFolder(str(tmp_path), train="y-train")
    with pytest.raises(
        FileNotFoundError,
        match=r"no set 'y-train' \(it holds x-train\).*`lightning pack FOLDER .* --name y --split train`.*photos\.yaml",
    ):
        data.train_dataloader()
    with pytest.raises(
        FileNotFoundError, match=r"holds no set to validate on; prepare it with `lightning pack FOLDER .*photos\.yaml"
    ):
        data.val_dataloader()


def test_an_empty_set_is_an_error(tmp_path: Path) -> None:
    shards(tmp_path, 0)
    describe(tmp_path, {"x-train-000000.tar": 0})
    data = ShardFolder(str(tmp_path), train="x-train", val="x-train")
    for split, loader in (("train", data.train_dataloader), ("val", data.val_dataloader)):
        with pytest.raises(DataError, match=f"{split}: the set holds no sample"):
            loader()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_shards_behind_a_url_are_fetched_once(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    paths = [Path(url) for url in shards(tmp_path / "served", 2, 3)]
    describe(tmp_path / "served", {path.name: count for path, count in zip(paths, (2, 3), strict=True)})
    data = ShardFolder(server, train="x-train", crop=8, batch_size=5, num_workers=2)
    keys = next(iter(data.train_dataloader()))["key"]
    assert sorted(keys) == [f"x/{index:04d}" for index in range(5)]
    for path in paths:
        path.unlink()
    assert sorted(next(iter(data.train_dataloader()))["key"]) == sorted(keys)


def test_a_set_that_was_packed_anew_behind_its_url_is_fetched_anew(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    for count in (2, 3):
        for index in range(count):
            save(tmp_path / str(count) / f"{index}.png", index)
        pack_folder(str(tmp_path / str(count)), str(tmp_path / "served"), "x", overwrite=True, workers=1)
        source = open_split(server, "x-train")
        assert [source.record(index).key for index in range(len(source))] == [f"x/{index}" for index in range(count)]


def test_a_shard_of_other_bytes_than_described_is_named(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    save(tmp_path / "in" / "a.png", 0)
    pack_folder(str(tmp_path / "in"), str(tmp_path / "served"), "x", workers=1)
    with (tmp_path / "served" / "x-train-000000.tar").open("r+b") as shard:
        shard.seek(600)
        shard.write(b"?")
    with pytest.raises(BadSample, match=r"x-train-000000\.tar: its sha256 is \w+, not \w+"):
        open_split(server, "x-train").record(0)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("s3://bucket/x.tar", r"s3:// needs the package s3fs, .*: pip install s3fs"),
        ("gs://bucket/x.tar", r"gs:// needs the package gcsfs, .*: pip install gcsfs"),
        ("nothing://bucket/x.tar", r"nothing.*pipe:COMMAND"),
    ],
)
def test_a_scheme_that_cannot_be_opened_names_the_way_out(
    url: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, absent, None)
    source = ShardSource([url], "x", counts=[3], cache=tmp_path / "cache")
    with pytest.raises(BadSample, match=wanted):
        source.record(0)


def test_shards_named_by_url_need_no_description(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    shards(tmp_path / "served", 2, 3)
    data = ShardFolder("", val=f"{server}/x-train-{{000000..000001}}.tar", num_workers=0)
    assert [batch["key"] for batch in data.val_dataloader()] == [[f"x/{index:04d}"] for index in range(5)]


def test_pipes_are_opened_by_webdataset(tmp_path: Path) -> None:
    (url,) = shards(tmp_path, 2)
    source = ShardSource([f"pipe:cat {url}"], "x", cache=tmp_path / "cache")
    assert source.record(1).key == "x/0001"


def test_an_absent_url_is_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    source = ShardSource([f"{server}/gone.tar"], "x", counts=[3], cache=tmp_path / "cache")
    with pytest.raises(BadSample, match=r"gone\.tar sample 0: HTTP Error 404"):
        source.record(0)


def test_a_url_that_times_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSR_PATIENCE", "0.5")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar"
        source = ShardSource([url], "x", counts=[3], cache=tmp_path / "cache", timeout=0.1)
        with pytest.raises(DataError, match=r"x\.tar: not fetched in 1 attempts and 0 s: .*timed out.*PATIENCE=0\.5"):
            source.record(0)
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_an_outage_of_the_server_makes_no_sample_bad(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (url,) = shards(tmp_path, 2)
    content = Path(url).read_bytes()

    def come_back_after_two_failures(server: socket.socket) -> None:
        for attempt in range(3):
            connection, _ = server.accept()
            connection.recv(1000)
            if attempt == 2:
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=come_back_after_two_failures, args=(server,), daemon=True).start()
        remote = f"http://127.0.0.1:{server.getsockname()[1]}/x.tar"
        source = ShardSource([remote], "x", counts=[2], cache=tmp_path / "cache", timeout=5)
        with caplog.at_level("WARNING"):
            assert source.record(1).key == "x/0001"
    assert [record.message.split(": ")[1].split(" (")[0] for record in caplog.records] == [
        "attempt 1 failed",
        "attempt 2 failed",
    ]


def test_a_connection_that_breaks_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSR_PATIENCE", "0")

    def break_off(server: socket.socket) -> None:
        for _ in range(3):
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 10000\r\n\r\n" + b"x" * 100)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=break_off, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.tar"
        source = ShardSource([url], "x", counts=[3], cache=tmp_path / "cache", timeout=5)
        with pytest.raises(DataError, match=r"closed after 100 of 10000 bytes"):
            source.record(0)
    assert not list((tmp_path / "cache").glob("*.tar"))


HARMED: dict[str, Callable[[bytes], bytes]] = {
    "a page that says 404": lambda content: b"<html><body>404 Not Found</body></html>" * 40,
    "zero bytes": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "cut between two members": lambda content: content[: 512 + -(-len(images(1)["0000.hr.png"]) // 512) * 512],
    "no header within": lambda content: content[:-10240].rstrip(b"\0") + b"?" * 4096 + content[-10240:],
    "gzipped": gzip.compress,
    "two tars in one": lambda content: content + content,
}


@pytest.mark.parametrize("harm", HARMED)
def test_a_damaged_shard_among_several_is_named(harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = shards(tmp_path, 2, 2, 2)
    harmed = Path(urls[1])
    harmed.write_bytes(HARMED[harm](harmed.read_bytes()))
    data = ShardFolder(str(tmp_path), train=f"{tmp_path}/x-train-{{000000..000002}}.tar", crop=8, num_workers=0)
    data.sets["val"] = data.sets["train"]
    with pytest.raises(DataError, match=r"val: an evaluation set must be complete, but .*x-train-000001\.tar: holds "):
        data.val_dataloader()
    with caplog.at_level(logging.WARNING):
        data.train_dataloader()
    assert f"{harmed}: holds " in caplog.text


def test_a_shard_of_another_size_than_it_was_packed_is_named(tmp_path: Path) -> None:
    for index in range(2):
        save(tmp_path / "in" / f"{index}.png", index)
    pack_folder(str(tmp_path / "in"), str(tmp_path / "out"), "x", "val", workers=1)
    data = ShardFolder(str(tmp_path / "out"), val="x-val", num_workers=0)
    assert [batch["key"] for batch in data.val_dataloader()] == [["x/0"], ["x/1"]]
    write_tar(tmp_path / "out" / "x-val-000000.tar", images(2, size=(90, 120)))
    with pytest.raises(DataError, match=r"x-val-000000\.tar: is \d+ bytes, not \d+ as it was packed"):
        data.val_dataloader()


def test_what_lies_beside_samples_is_none(tmp_path: Path) -> None:
    beside = ("README", "README.md", "sub/readme.txt", "LICENSE.txt", "__meta__.json", "__index__/a.png")
    hidden = ("._0000.hr.png", "sub/._0001.hr.png", "__MACOSX/0000.hr.png", ".DS_Store")
    members = [(name, b"x") for name in (*beside, *hidden)]
    source = ShardSource([str(write_tar(tmp_path / "x.tar", [*members, *images(2).items()]))], "x")
    assert [source.record(index).key for index in range(len(source))] == ["x/0000", "x/0001"]
    assert source.damage() == []


def test_a_shard_whose_name_has_braces_is_meant_itself(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x {a,b}-train-000000.tar", images(1))
    assert expand_braces(str(path)) == [str(path)]
