"""Weights by name: found, near, packaged, downloaded, imported; and what is wrong with what was typed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_modules import weights
from lightning_modules.checkpoint import CheckpointError, own_state, read_checkpoint, write_export
from lightning_modules.config import configured_model, load_method
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS
from lightning_modules.weight_files import WeightsError, cache_folder
from lightning_modules.weights import Entry, entry, is_name, names, resolve
from tests.tiny.experiments import tiny_overlays

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
        asked.append((name, revision))
        if name == "someone/none":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nat all")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_method("hub:someone/net@v1").trained_scale == 4
    with pytest.raises(WeightsError, match=r"hub:someone/none: cannot be had from the hub \(no network\); bring"):
        resolve("hub:someone/none")
    assert asked == [("someone/net", "v1"), ("someone/none", None)]


def test_every_entry_of_the_project_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ENTRIES", CONFIGS / "weights")
    for name in names():
        found = entry(name)
        assert is_name(name) and isinstance(found, Entry)
        assert (found.packaged is None) == bool(found.files), f"{name}: either packaged or files"
        assert found.packaged or found.address or found.manual, f"{name}: no way to get it"
        assert (found.importer is None) or found.config is None or (CONFIGS / found.config).is_file()
        assert all(sha256 is None or len(sha256) == 64 for sha256 in found.files.values())
