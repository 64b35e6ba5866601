"""Files of weights: found, downloaded once, checked, and read without executing anything."""

import hashlib
import http.server
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_modules.weight_files import WeightFile, WeightsError, cache_folder, obtain, read_tensors

CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under any path, half of it under /half, and counts the requests."""

    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(404 if self.path == "/absent" else 200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/half" else CONTENT)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    served = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


def file_at(server: Server, name: str = "net.pth", sha256: str = DIGEST, also: tuple[str, ...] = ()) -> WeightFile:
    return WeightFile(name, f"http://127.0.0.1:{server.server_address[1]}/{name}", sha256, also)


def fetch(file: WeightFile, found: Any) -> None:
    found.put(str(obtain(file, needed_by="a test")))


def test_several_processes_download_once(server: Server) -> None:
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [context.Process(target=fetch, args=(file_at(server), found)) for _ in range(4)]
    for process in processes:
        process.start()
    paths = {found.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert paths == {str(cache_folder() / "net.pth")}
    assert server.requests == 1
    assert (cache_folder() / "net.pth").read_bytes() == CONTENT


def test_what_is_in_the_cache_is_not_downloaded_again(server: Server) -> None:
    for _ in range(2):
        obtain(file_at(server), needed_by="a test")
    assert server.requests == 1


@pytest.mark.parametrize("sha256", [DIGEST, DIGEST[:8], ""])
def test_the_digest_may_be_its_beginning_or_unknown(server: Server, sha256: str) -> None:
    assert obtain(file_at(server, sha256=sha256), needed_by="a test").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "sha256", "left"), [("net.pth", "0" * 64, [".lock"]), ("half", DIGEST, [".lock", ".part"])]
)
def test_of_a_damaged_download_only_what_can_be_resumed_is_left(
    server: Server, name: str, sha256: str, left: list[str]
) -> None:
    file = file_at(server, name, sha256)
    with pytest.raises(WeightsError, match=rf"a test needs the weights {name}.*weights: FILE"):
        obtain(file, needed_by="a test")
    assert sorted(path.suffix for path in cache_folder().iterdir()) == left


def test_the_named_folder_is_downloaded_to(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(tmp_path / "mine"))
    assert obtain(file_at(server, "part/net.pth"), needed_by="a test") == tmp_path / "mine" / "part" / "net.pth"


def test_without_a_published_digest_that_of_the_first_download_counts(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    path = obtain(file_at(server, sha256=""), needed_by="a test")
    assert "no sha256 is published for it" in caplog.text
    assert obtain(file_at(server, sha256=""), needed_by="a test") == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=rf"net\.pth: its sha256 is .*, not {DIGEST}"):
        obtain(file_at(server, sha256=""), needed_by="a test")


def test_what_no_program_can_download_says_how_it_is_done_by_hand(server: Server) -> None:
    file = WeightFile("net.pth", None, "")
    with pytest.raises(WeightsError, match=r"from any address \(no program can\)\. Get it from a friend and put it"):
        obtain(file, needed_by="a test", manual="Get it from a friend")


def test_the_named_folder_comes_before_the_cache(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(tmp_path))
    obtain(file_at(server), needed_by="a test")
    (tmp_path / "net.pth").write_bytes(CONTENT)
    assert obtain(file_at(server), needed_by="a test") == tmp_path / "net.pth"


def test_other_names_of_the_same_weights_are_found(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(tmp_path))
    (tmp_path / "layers.safetensors").write_bytes(b"fewer layers, so another digest")
    found = obtain(file_at(server, also=("layers.safetensors",)), needed_by="a test")
    assert found == tmp_path / "layers.safetensors"
    assert server.requests == 0


def test_a_damaged_copy_is_named_with_the_way_out(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(tmp_path))
    (tmp_path / "net.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=rf"net\.pth: its sha256 is .*, not {DIGEST}.*Delete it.*http://"):
        obtain(file_at(server), needed_by="a test")


def test_a_given_path_is_taken_as_it_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"other weights")
    assert obtain(file_at(server), str(tmp_path / "mine.pth"), needed_by="a test") == tmp_path / "mine.pth"
    with pytest.raises(WeightsError, match=r"none\.pth: no such file, and LPIPS was told"):
        obtain(file_at(server), str(tmp_path / "none.pth"), needed_by="LPIPS")
    assert server.requests == 0


def test_offline_the_error_names_file_folders_source_and_option(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = r"LPIPS needs the weights net\.pth or n\.st,.*DIFFSR_WEIGHTS.*cache/weights.*http://127.*`weights: FILE`"
    with pytest.raises(WeightsError, match=wanted):
        obtain(file_at(server, also=("n.st",)), needed_by="LPIPS")
    assert server.requests == 0


def test_a_source_that_is_gone_is_the_same_error(server: Server) -> None:
    with pytest.raises(WeightsError, match=r"could not be downloaded from http://.*/absent \(HTTP Error 404"):
        obtain(file_at(server, "absent"), needed_by="LPIPS")


def test_tensors_are_read_from_both_formats(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3)}
    torch.save(tensors, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        torch.testing.assert_close(read_tensors(tmp_path / name), tensors)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("executed",))


@pytest.mark.parametrize("content", [{"a": Harmful()}, {"a": 1}, torch.zeros(2)])
def test_anything_else_is_refused_and_nothing_executed(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: (cannot be read as tensors|holds something else)"):
        read_tensors(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_cut_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(WeightsError, match=r"cut.*cannot be read as tensors, the file may be damaged"):
        read_tensors(tmp_path / name)
