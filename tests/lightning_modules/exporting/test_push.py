"""Publishing an export: what is refused before anything is sent, and what is sent."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from datamodules.photos import bundled
from lightning_modules.checkpoint import CheckpointError, write_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.exporting.export import export
from lightning_modules.exporting.push import main, push
from lightning_modules.weight_files import WeightsError
from tests.tiny.experiments import CONFIGS, tiny_overlays


@pytest.fixture
def made(tmp_path: Path) -> Path:
    files = [CONFIGS / "rrdb.yaml", *tiny_overlays(CONFIGS / "rrdb.yaml")]
    (tmp_path / "composed.yaml").write_text(yaml.safe_dump({"compose": [str(file) for file in files]}))
    write_checkpoint(*configured_model(tmp_path / "composed.yaml"), tmp_path / "net.ckpt")
    export(tmp_path / "net.ckpt", tmp_path / "net", licence="mit", images=[bundled("coffee.png")])
    return tmp_path / "net"


class Hub:
    """What a hub is asked."""

    sent: list[tuple[str, Any]]
    refuses = False

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if self.refuses:
            raise huggingface_hub.errors.LocalTokenNotFoundError("no token\nwas found")
        self.sent.append((name, private))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(Hub, "sent", [], raising=False)
    monkeypatch.setattr(Hub, "refuses", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_the_whole_folder_is_sent(made: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    main([str(made), "someone/net", "--private"])
    files = ["README.md", "config.yaml", "model.safetensors", "pairs"]
    assert hub.sent == [("someone/net", True), ("someone/net", files)]
    assert (
        "https://hub/someone/net\nlightning enlarge PHOTOS -o ENLARGED --weights hub:someone/net"
        in capsys.readouterr().out
    )


def test_what_the_hub_refuses_is_one_error(made: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "refuses", True)
    with pytest.raises(WeightsError, match=r"someone/net: the hub does not take it \(no token\); hf auth login"):
        push(made, "someone/net")


def test_a_folder_without_a_licence_or_with_other_weights_is_not_sent(made: Path, hub: type[Hub]) -> None:
    card = (made / "README.md").read_text()
    (made / "README.md").write_text(card.replace("license: mit\n", ""))
    with pytest.raises(CheckpointError, match=r"README\.md: names no licence; lightning export .* --license"):
        push(made, "someone/net")
    (made / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"README\.md: names no licence"):
        push(made, "someone/net")
    (made / "README.md").write_text(card)
    (made / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not the file that the pairs were made with"):
        push(made, "someone/net")
    with pytest.raises(WeightsError, match="is no exported method"):
        push(made / "pairs", "someone/net")
    assert not hub.sent
