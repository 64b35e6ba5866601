"""One file from a server that breaks off, knows no ranges, sends another file, or finds the disk full."""

import errno
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.download import WrongContent, download

CONTENT = bytes(range(251)) * 20000  # several blocks, and no multiple of one
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Sends CONTENT in pieces of at most `piece` bytes, then closes; `ranges` says whether it sends parts."""

    piece = len(CONTENT)
    ranges = True
    content = CONTENT

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/net.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(self.server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.server.content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.server.content) - start))
        self.end_headers()
        self.wfile.write(self.server.content[start : start + self.server.piece])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def test_a_connection_that_breaks_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.piece = 2_000_000
    path = download(server.url, tmp_path / "net.pth", 10, DIGEST)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000000-", "bytes=4000000-"]
    assert [file.name for file in tmp_path.iterdir()] == ["net.pth"]


def test_a_later_call_goes_on_where_an_earlier_one_ended(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:1234567])
    assert download(server.url, tmp_path / "net.pth", 10, DIGEST).read_bytes() == CONTENT
    assert server.asked == ["bytes=1234567-"]


def test_a_part_that_lacks_nothing_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.pth.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "net.pth", 10, DIGEST).read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"of another file", CONTENT + b"longer"])
def test_a_part_of_another_file_is_not_kept(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "net.pth.part").write_bytes(part)
    if len(part) < len(CONTENT):
        with pytest.raises(WrongContent, match=rf"net\.pth: its sha256 is .*, not {DIGEST}"):
            download(server.url, tmp_path / "net.pth", 10, DIGEST)
        assert not list(tmp_path.iterdir())
    assert download(server.url, tmp_path / "net.pth", 10, DIGEST).read_bytes() == CONTENT


def test_without_a_digest_no_part_of_an_earlier_call_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.pth.part").write_bytes(b"of another version")
    assert download(server.url, tmp_path / "net.pth", 10).read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_server_that_sends_no_parts_is_given_up_where_it_breaks_twice(server: Server, tmp_path: Path) -> None:
    server.ranges, server.piece = False, 2_000_000
    with pytest.raises(OSError, match=r"closed after 2000000 of 5020000 bytes"):
        download(server.url, tmp_path / "net.pth", 10, DIGEST)
    assert len(server.asked) == 2 and not (tmp_path / "net.pth").exists()


def test_a_wrong_checksum_keeps_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WrongContent, match=rf"net\.pth: its sha256 is {DIGEST}, not 0000"):
        download(server.url, tmp_path / "net.pth", 10, "0000")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_nothing_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, block: bytes) -> int:
            self.file.write(block[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        file = opened(path, mode, *rest, **options)
        return Full(file) if path.suffix == ".part" and mode != "rb" else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"net\.pth: there is no room for it on the disk; make room") as error:
        download(server.url, tmp_path / "net.pth", 10, DIGEST)
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
