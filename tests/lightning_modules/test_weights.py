"""Weights by name: found, near, packaged, downloaded, imported; and what is wrong with what was typed."""

import hashlib
import logging
import os
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lightning_modules import weights
from lightning_modules.checkpoint import (
    CheckpointError,
    load_network,
    no_file,
    own_state,
    read_checkpoint,
    write_export,
)
from lightning_modules.config import configured_model, load_method
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS
from lightning_modules.exporting.weights_command import main as command
from lightning_modules.running.experiment import run
from lightning_modules.weight_files import WeightsError, cache_folder
from lightning_modules.weights import Entry, entry, is_name, located, names, resolve
from tests.tiny.experiments import tiny_overlays

PUBLISHED = Path(os.environ.get("DIFFSR_TEST_DATA", "/none")) / "weights" / "realesrgan_x4plus_fp16.safetensors"
ALWAYS = {"purpose": "tests", "licence": "MIT", "source": "here"}


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of entries, a folder of packaged exports and a cache of one test."""
    folder = tmp_path / "entries"
    folder.mkdir()
    monkeypatch.setattr(weights, "ENTRIES", folder)
    monkeypatch.setattr(weights, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(ALWAYS | content))


def tiny_rrdb(folder: Path) -> Path:
    """A config of a tiny RRDB network."""
    files = [CONFIGS / "rrdb.yaml", *tiny_overlays(CONFIGS / "rrdb.yaml")]
    path = folder / "rrdb.yaml"
    path.write_text(yaml.safe_dump({"compose": [str(file) for file in files]}))
    return path


def export(folder: Path, at: Path) -> None:
    model, config = configured_model(tiny_rrdb(folder))
    write_export(own_state(model), config, at)


def test_a_packaged_export_is_loaded_by_its_name(entries: Path, tmp_path: Path) -> None:
    export(tmp_path, tmp_path / "packaged" / "tiny-x4")
    write(entries, "tiny-x4", packaged="tiny-x4")
    assert resolve("tiny-x4") == tmp_path / "packaged" / "tiny-x4" / "model.safetensors"
    assert entry("tiny-x4").present()
    assert load_method("tiny-x4").trained_scale == 4


def test_a_packaged_export_that_is_not_there_names_the_others(entries: Path) -> None:
    write(entries, "tiny-x4", packaged="tiny-x4")
    write(entries, "other")
    with pytest.raises(WeightsError, match=r"tiny-x4: belongs into the package.*not complete\. Other names: other$"):
        resolve("tiny-x4")


def test_a_file_comes_before_a_name(entries: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(entries, "net", packaged="net")
    (tmp_path / "net").write_bytes(b"weights")
    assert resolve("net") == Path("net")
    assert "net: the file or folder of this name is taken" in caplog.text


def test_an_unknown_name_is_told_the_nearest(entries: Path) -> None:
    for name in ("RealESRGAN_x4plus", "RealESRNet_x4plus", "photo-x4"):
        write(entries, name)
    with pytest.raises(WeightsError, match=r"realesrgan_x4: is neither .* RealESRGAN_x4plus, RealESRNet_x4plus \("):
        resolve("realesrgan_x4")
    with pytest.raises(WeightsError, match=r"qqq: .*nearest names: RealESRGAN_x4plus, RealESRNet_x4plus, photo-x4"):
        resolve("qqq")


@pytest.mark.parametrize("path", ["none.ckpt", "runs/none", "./none"])
def test_a_path_that_does_not_exist_stays_a_path(path: str) -> None:
    with pytest.raises(CheckpointError, match=f"{Path(path)}: no such checkpoint"):
        load_method(path)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(WeightsError, match=r"run: is no exported method, it has no model\.safetensors"):
        load_method(tmp_path / "run")


def test_a_folder_of_an_export_loads_what_was_written(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, config = configured_model(tiny_rrdb(tmp_path))
    write_export(own_state(model), config, tmp_path / "whole")
    write_export(own_state(model), config, tmp_path / "half", half=True)
    for key, value in model.state_dict().items():
        assert torch.equal(load_method(tmp_path / "whole").state_dict()[key], value)
        assert torch.equal(load_method(tmp_path / "half").state_dict()[key], value.half().float())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    assert read_checkpoint(tmp_path / "whole" / "model.safetensors")["datamodule_hyper_parameters"]["scale"] == 4


def test_a_weight_too_large_for_half_precision_is_named(tmp_path: Path) -> None:
    model, config = configured_model(tiny_rrdb(tmp_path))
    state = own_state(model)
    name = next(iter(state))
    state[name] = state[name] + 1e6
    with pytest.raises(CheckpointError, match=rf"{name}: is too large for half precision"):
        write_export(state, config, tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize(("content", "wrong"), [({"licences": "MIT"}, "'licences' is unknown"), (None, "purpose")])
def test_an_entry_with_a_wrong_key_or_without_one_is_named(entries: Path, content: Any, wrong: str) -> None:
    (entries / "net.yaml").write_text(yaml.safe_dump({} if content is None else ALWAYS | content))
    with pytest.raises(ConfigError, match=rf"net\.yaml: .*{wrong}"):
        entry("net")


def served(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """An entry's fields for a file behind a file address."""
    (folder / "server").mkdir(exist_ok=True)
    (folder / "server" / name).parent.mkdir(exist_ok=True)
    (folder / "server" / name).write_bytes(content)
    return {"address": f"file://{folder}/server", "files": {name: hashlib.sha256(content).hexdigest()}}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_a_published_file_is_downloaded_and_imported_once(
    online: None, entries: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_rrdb(tmp_path)
    model, _ = configured_model(config)
    torch.save(model.network.state_dict(), tmp_path / "made.pth")
    importer = {"importer": "lightning_modules.published.importing.import_file", "config": str(config)}
    write(entries, "net", **served(tmp_path, "net.pth", (tmp_path / "made.pth").read_bytes()), **importer)
    assert not entry("net").present()
    loaded = load_method("net")
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert entry("net").present() and "being made of" in caplog.text
    caplog.clear()
    assert resolve("net").parent.parent == cache_folder()
    assert not caplog.text


def test_several_files_are_a_folder(online: None, entries: Path, tmp_path: Path) -> None:
    one, two = served(tmp_path, "unet/a.safetensors", b"a"), served(tmp_path, "config.json", b"{}")
    write(entries, "parts", address=one["address"], files=one["files"] | two["files"])
    folder = resolve("parts")
    assert folder == cache_folder() / "parts"
    assert (folder / "unet" / "a.safetensors").read_bytes() == b"a" and (folder / "config.json").read_bytes() == b"{}"


def test_a_wrong_checksum_keeps_nothing(online: None, entries: Path, tmp_path: Path) -> None:
    content = served(tmp_path, "net.pth", b"other bytes")
    write(entries, "net", address=content["address"], files={"net.pth": "0" * 64})
    with pytest.raises(WeightsError, match=r"net needs .* its sha256 is .*, not 0000.*instead of the name"):
        resolve("net")
    assert [path.suffix for path in cache_folder().iterdir()] == [".lock"]


def test_a_licence_that_forbids_commercial_use_is_shown_first(online: None, entries: Path, tmp_path: Path) -> None:
    write(entries, "net", **served(tmp_path, "net.pth", b"bytes"), commercial=False)
    with pytest.raises(
        WeightsError, match=r"net: may not be used commercially \(MIT; here\).*weights get net --accept"
    ):
        resolve("net")
    assert not cache_folder().exists()
    assert resolve("net", accept=True).read_bytes() == b"bytes"
    assert resolve("net").read_bytes() == b"bytes"


def test_without_a_network_the_folder_and_the_file_are_named(entries: Path, tmp_path: Path) -> None:
    write(entries, "net", **served(tmp_path, "net.pth", b"bytes"))
    with pytest.raises(WeightsError, match=r"weights net\.pth, which are not in .*cache/weights.*put it into one of"):
        resolve("net")
    cache_folder().mkdir(parents=True)
    (cache_folder() / "net.pth").write_bytes(b"bytes")
    assert resolve("net") == cache_folder() / "net.pth"


def test_what_has_no_address_says_how_it_is_got_by_hand(online: None, entries: Path) -> None:
    write(entries, "net", files={"net.pth": None}, manual="Download it from the authors' page")
    with pytest.raises(WeightsError, match=r"\(no program can\)\. Download it from the authors' page and put it into"):
        resolve("net")


def test_a_hub_id_is_an_exported_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []
    export(tmp_path, tmp_path / "snapshot")

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns[0]))
        if name == "someone/none":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nat all")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_method("hub:someone/net@v1").trained_scale == 4
    with pytest.raises(WeightsError, match=r"someone/none: cannot be had from the hub \(no network\); bring"):
        resolve("hub:someone/none")
    assert asked == [("someone/net", "v1", "model.safetensors"), ("someone/none", None, "model.safetensors")]


def test_a_model_of_the_hub_is_its_folder_with_the_known_files(
    entries: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def snapshot_download(name: str, *, revision: str, local_files_only: bool = False, **_: Any) -> str:
        assert (name, revision) == ("someone/net", "abc")
        if local_files_only and not (tmp_path / "snapshot").is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        if not local_files_only:
            (tmp_path / "snapshot" / "vae").mkdir(parents=True, exist_ok=True)
            (tmp_path / "snapshot" / "vae" / "a.safetensors").write_bytes(content)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    files = {"vae/a.safetensors": hashlib.sha256(b"right").hexdigest()}
    write(entries, "net", hub="someone/net", revision="abc", files=files)
    content = b"wrong"
    assert not entry("net").present()
    with pytest.raises(WeightsError, match=r"a\.safetensors: its sha256 is .*; it is removed, get it again"):
        resolve("net")
    assert not entry("net").present()
    content = b"right"
    assert resolve("net") == tmp_path / "snapshot" and located("net") == str(tmp_path / "snapshot")
    assert located("someone/other") == "someone/other"


def test_without_a_checkpoint_the_packaged_model_enlarges_and_says_so(
    entries: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(tmp_path, tmp_path / "packaged" / "tiny")
    write(entries, "real-x4", packaged="tiny")
    Image.new("RGB", (20, 16), "red").save(tmp_path / "photo.png")
    with caplog.at_level(logging.INFO):
        run(["predict", "--input", "photo.png", "--output", "out"])
    assert "no --ckpt_path is given: enlarging with real-x4" in caplog.text
    assert Image.open("out/photo.png").size == (80, 64)


def test_without_a_checkpoint_and_without_the_packaged_model_the_names_are_listed(
    entries: Path, tmp_path: Path
) -> None:
    write(entries, "other-x4", packaged="tiny")
    write(entries, "a-backbone", files={"a.pth": None})
    for written in (False, True):  # unknown, and known but not there
        if written:
            write(entries, "real-x4", packaged="tiny")
        with pytest.raises(ConfigError, match=r"no --ckpt_path is given, and real-x4.*one of the names other-x4[ ,]"):
            run(["predict", "--input", "photo.png", "--output", "out"])


def test_help_needs_no_packaged_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["predict", "--help"])
    assert "--ckpt_path CHECKPOINT_OR_NAME" in capsys.readouterr().out.replace("\n", " ")


def test_a_name_of_another_scale_than_the_datas_is_refused(entries: Path, tmp_path: Path) -> None:
    export(tmp_path, tmp_path / "packaged" / "tiny")
    write(entries, "tiny-x4", packaged="tiny")
    Image.new("RGB", (20, 16), "red").save(tmp_path / "photo.png")
    with pytest.raises(CheckpointError, match=r"tiny/model\.safetensors: was trained for x4, but .* for x2"):
        run(["predict", "--ckpt_path", "tiny-x4", "--input", "photo.png", "--output", "o", "--data.init_args.scale=2"])


def test_the_list_says_what_is_here(entries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(tmp_path, tmp_path / "packaged" / "tiny")
    write(entries, "a", packaged="tiny", scores="30 dB")
    write(entries, "b", files={"b.pth": None}, manual="by mail", commercial=False, bytes=12_300_000)
    write(entries, "c", files={"c.pth": None}, address="http://here")
    command([])
    assert capsys.readouterr().out == (
        "a (in the package)\n    tests\n    MIT; here\n    30 dB\n"
        "b (not here, by hand, 12.3 MB)\n    tests\n    not for commercial use: MIT; here\n"
        "c (not here)\n    tests\n    MIT; here\n"
    )


def test_getting_weights_prints_where_they_are(
    online: None, entries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(entries, "net", **served(tmp_path, "net.pth", b"bytes"), commercial=False)
    with pytest.raises(WeightsError, match="may not be used commercially"):
        command(["get", "net"])
    assert "net: may not be used commercially: MIT, here" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="nearest names: net"):
        command(["get", "ne"])
    command(["get", "net", "--accept"])
    assert capsys.readouterr().out.endswith(f"{cache_folder() / 'net.pth'}\n")


@pytest.mark.parametrize("answer", ["y", ""])
def test_at_a_terminal_a_licence_is_asked_about(
    online: None, entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    write(entries, "net", **served(tmp_path, "net.pth", b"bytes"), commercial=False)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if answer:
        command(["get", "net"])
        assert entry("net").present()
    else:
        with pytest.raises(WeightsError, match="net: not downloaded, its licence was not accepted"):
            command(["get", "net"])


def test_a_part_takes_a_name(entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restorer of DoSSR, the encoder of SRDiff and others are read by `load_network`."""
    export(tmp_path, tmp_path / "packaged" / "tiny")
    write(entries, "tiny-x4", packaged="tiny")
    model, _ = configured_model(tiny_rrdb(tmp_path))
    load_network(model.network, "tiny-x4")
    for key, value in load_method("tiny-x4").state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert no_file("tiny-x4", "a network", "--option") is None
    write(entries, "absent", files={"absent.pth": None}, address="http://here")
    wanted = "absent: absent.pth is not on this machine and cannot be downloaded; give a network as --option"
    assert no_file("absent", "a network", "--option") == wanted
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert no_file("absent", "a network", "--option") is None


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"DIFFSR_TEST_DATA has no weights/{PUBLISHED.name}")
def test_real_esrgan_is_loaded_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "ENTRIES", CONFIGS / "weights")
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(PUBLISHED.parent))
    model = load_method("RealESRGAN_x4plus")
    assert sum(each.numel() for each in model.parameters()) == 16_697_987 and model.trained_scale == 4


def test_every_entry_of_the_project_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ENTRIES", CONFIGS / "weights")
    for name in names():
        found = entry(name)
        assert is_name(name) and isinstance(found, Entry)
        ways = [found.packaged, found.address, found.hub, found.manual]
        assert sum(way is not None for way in ways) == 1, f"{name}: one way to get it"
        assert found.files or found.packaged or found.hub, f"{name}: no files"
        assert found.importer is None or locate(found.importer) is not None
        assert (found.importer is None) or found.config is None or (CONFIGS / found.config).is_file()
        assert all(sha256 is None or len(sha256) == 64 for sha256 in found.files.values())
