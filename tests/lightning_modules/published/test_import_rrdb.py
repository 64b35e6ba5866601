"""Published RRDB networks, under SRDiff's names and under BasicSR's."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.folder import Folder
from lightning_modules.checkpoint import CheckpointError, load_network
from lightning_modules.config import load_method
from lightning_modules.config_files import CONFIGS
from lightning_modules.metrics.lpips import LPIPS
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.published import basicsr_names
from lightning_modules.published.importing import import_weights, main
from lightning_modules.rrdb import RRDBRegressor

WEIGHTS = Path(os.environ.get("DIFFSR_TEST_DATA", "/nowhere")) / "weights"
PUBLISHED = WEIGHTS / "realesrgan_x4plus_fp16.safetensors"


def real_esrgan(network: RRDBNet) -> dict[str, Tensor]:
    """Its state dict under the names of Real-ESRGAN's public files."""
    renamed = {}
    for key, value in network.state_dict().items():
        for ours, theirs in (
            ("RRDB_trunk", "body"),
            ("RDB", "rdb"),
            ("trunk_conv", "conv_body"),
            ("upconv", "conv_up"),
        ):
            key = key.replace(ours, theirs)
        renamed[key.replace("HRconv", "conv_hr")] = value
    return renamed


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def test_a_part_reads_the_public_names_of_real_esrgan(tmp_path: Path) -> None:
    source, target = (RRDBNet(4, nf=8, nb=2) for _ in range(2))
    published = real_esrgan(source)
    assert {"body.1.rdb3.conv5.bias", "conv_up2.weight", "conv_hr.bias", "conv_first.bias"} < set(published)
    torch.save({"params_ema": published}, tmp_path / "RealESRNet.pth")
    load_network(target, tmp_path / "RealESRNet.pth")
    assert_same(target.state_dict(), source.state_dict())

    torch.save({key: published[key] for key in published if key != "body.1.rdb1.conv1.bias"}, tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match=r"partial\.pth: .*Missing.*RRDB_trunk\.1\.RDB1\.conv1\.bias"):
        load_network(target, tmp_path / "partial.pth")


def test_our_own_names_stay_as_they_are() -> None:
    state = RRDBNet(2, nf=8, nb=1).state_dict()
    assert_same(basicsr_names.rrdb(state), state)


@pytest.mark.parametrize("basicsr", [False, True])
def test_published_weights_are_imported_whole(tmp_path: Path, basicsr: bool) -> None:
    source, target = RRDBNet(4, nf=8, nb=2), RRDBRegressor(RRDBNet(4, nf=8, nb=2))
    torch.save(real_esrgan(source) if basicsr else source.state_dict(), tmp_path / "rrdb.pth")
    import_weights(target, tmp_path / "rrdb.pth")
    assert_same(target.network.state_dict(), source.state_dict())


def test_weights_of_another_configuration_are_refused(tmp_path: Path) -> None:
    torch.save(RRDBNet(4, nf=8, nb=2).state_dict(), tmp_path / "rrdb.pth")
    with pytest.raises(CheckpointError, match=r"rrdb\.pth: the weights do not fit RRDBRegressor.*RRDB_trunk\.1"):
        import_weights(RRDBRegressor(RRDBNet(4, nf=8, nb=1)), tmp_path / "rrdb.pth")


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"DIFFSR_TEST_DATA has no weights/{PUBLISHED.name}")
def test_real_esrgan_is_run_by_the_projects_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On all of Set5 an independent scorer found 26.634 dB and LPIPS 0.1698, beside bicubic's 28.431 and 0.3407."""
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(PUBLISHED.parent))
    main([str(PUBLISHED), "--config", str(CONFIGS / "realesrgan.yaml"), "--out", str(tmp_path / "realesrgan.ckpt")])
    model = load_method(tmp_path / "realesrgan.ckpt")
    assert sum(each.numel() for each in model.parameters()) == 16_697_987

    data = Folder(test=str(PUBLISHED.parents[1] / "set5"), scale=4, num_workers=0, val_crop=192)
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    images = {"sr": model.super_resolve(batch), "up": batch["up"].clamp(-1, 1), "hr": batch["hr"]}
    unit = {name: (image + 1) / 2 for name, image in images.items()}
    lpips = LPIPS()
    lpips.load()
    assert lpips(unit["sr"], unit["hr"]) < 0.75 * lpips(unit["up"], unit["hr"])
    assert PSNR()(unit["sr"], unit["hr"]) > 22
