"""Chains of trained methods, and generation from seeds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from callbacks.prediction_writer import PredictionWriter
from datamodules.batch import Batch, make_batch
from datamodules.seeds import Seeds
from lightning_modules.cascade import Cascade
from lightning_modules.checkpoint import CheckpointError, write_checkpoint
from lightning_modules.config import build, load_method
from lightning_modules.config_files import CONFIGS
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.relay_sampler import RelayHeun
from lightning_modules.running.experiment import run
from lightning_modules.super_resolver import SuperResolver

DIFFUSION = "lightning_modules.diffusion"


def part(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": arguments}


def config(kind: str, patch: int) -> dict[str, Any]:
    unet = part(
        "lightning_modules.networks.unet_adm.ADMUNet",
        img_resolution=16,
        model_channels=8,
        channel_mult=[1, 2],
        num_blocks=1,
        attn_resolutions=[],
        channels_per_head=8,
    )
    if kind == "EDM":
        process, sampler = part(f"{DIFFUSION}.edm.EDMProcess"), part(f"{DIFFUSION}.edm_samplers.EDMHeun", steps=8)
    else:
        process = part(f"{DIFFUSION}.relay.RelayProcess", patch=patch)
        sampler = part(f"{DIFFUSION}.relay_sampler.RelayHeun", steps=8)
    return part(
        f"lightning_modules.{kind.lower()}.{kind}",
        network=unet,
        process=process,
        parameterization=part(f"{DIFFUSION}.parameterization.Preconditioned"),
        space=part(f"{DIFFUSION}.space.Pixels"),
        sampler=sampler,
        condition_on="none",
    )


def checkpoint(folder: Path, name: str, kind: str = "Relay", patch: int = 2, **data: Any) -> str:
    torch.manual_seed(len(name))
    model, path = build(config(kind, patch), name), folder / f"{name}.ckpt"
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    arguments = {"scale": patch, "up_kernel": "nearest", **data}
    write_checkpoint(
        model, {"model": config(kind, patch), "data": part("datamodules.folder.Folder", **arguments)}, path
    )
    return str(path)


def images(scale: int) -> Batch:
    lr = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    return make_batch(lr, ["a", "b"], scale=scale, kernel="nearest")


def test_a_cascade_is_its_stages_one_after_the_other(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, "first", patch=2), checkpoint(tmp_path, "second", patch=4)]
    batch = images(8)
    whole = Cascade(paths).super_resolve(batch)
    assert whole.shape == (2, 3, 64, 80)
    step = (batch["lr"] + 1) / 2
    for index, (path, scale) in enumerate(zip(paths, (2, 4), strict=True)):
        keys = [f"{key}, stage {index + 1}" for key in batch["key"]]
        step = (load_method(path).super_resolve(make_batch(step, keys, scale=scale, kernel="nearest")) + 1) / 2
    assert torch.allclose(whole, step * 2 - 1, atol=1e-6)


def test_samplers_can_be_replaced_stage_by_stage(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, "first"), checkpoint(tmp_path, "second")]
    replaced = Cascade(paths, samplers=[None, RelayHeun(12)])
    assert replaced.protocol() == "relayheun-3-below-0.9 > relayheun-4-below-0.9"
    batch = images(4)
    assert torch.equal(replaced.super_resolve(batch), Cascade(paths).super_resolve(batch, RelayHeun(12)))
    assert not torch.equal(replaced.super_resolve(batch), Cascade(paths).super_resolve(batch))


def test_a_generated_image_depends_on_its_seed_alone_and_is_enlarged(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, "generator", "EDM", scale=4), checkpoint(tmp_path, "second", patch=4)]
    cascade, data = Cascade(paths, generate=True), Seeds(count=3, first=7, size=16, final=64, batch_size=2)
    batches = list(data.predict_dataloader())
    assert [batch["key"] for batch in batches] == [["000007", "000008"], ["000009"]]
    generated = torch.cat([cascade.super_resolve(batch) for batch in batches])
    assert generated.shape == (3, 3, 64, 64)
    with pytest.raises(ValueError, match=r"x1 x4, x4 in all, .* x2: set the data's `final: 64`"):
        cascade.super_resolve(next(iter(Seeds(count=1, size=16, final=32).predict_dataloader())))
    again = next(iter(Seeds(count=1, first=8, size=16, final=64).predict_dataloader()))
    assert torch.allclose(cascade.super_resolve(again), generated[1:2], atol=1e-5)
    assert not torch.allclose(generated[0], generated[1])


def test_lightning_predict_writes_what_a_cascade_makes(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, "generator", "EDM", scale=4), checkpoint(tmp_path, "second", patch=2)]
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[PredictionWriter(str(tmp_path / "out"))], enable_progress_bar=False
    )
    trainer.predict(Cascade(paths, generate=True), Seeds(count=3, size=16, final=32, batch_size=2))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "000002.png"]


def test_the_command_enlarges_photos_with_a_cascade_and_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    second = checkpoint(tmp_path, "second", patch=4)
    Image.new("RGB", (9, 7), (200, 100, 50)).save(tmp_path / "photo.png")
    small = f"--model.init_args.stages=[{checkpoint(tmp_path, 'first', patch=4)},{second}]"
    cascade = ["predict", "--config", str(CONFIGS / "command" / "cascade.yaml")]
    run([*cascade, "--input", "photo.png", "--output", "out", small])
    with Image.open(tmp_path / "out" / "photo.png") as enlarged:
        assert enlarged.size == (9 * 16, 7 * 16)
    generated = f"--model.init_args.stages=[{checkpoint(tmp_path, 'generator', 'EDM', scale=4)},{second}]"
    data = ["--data.init_args.count", "2", "--data.init_args.size", "16", "--data.init_args.final", "64"]
    run(["predict", "--config", str(CONFIGS / "command" / "generate.yaml"), "--output", "new", generated, *data])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["000000.png", "000001.png"]
    with pytest.raises(ValueError, match="x4 x4, x16 in all, but the data is configured for x4"):
        arguments = ["--input", "photo.png", "--output", "out4", "--data.init_args.scale", "4", small]
        run([*cascade, *arguments])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, "first"), checkpoint(tmp_path, "second", patch=4)]
    with pytest.raises(ValueError, match="enlarge by x2 x4, x8 in all, but the data is configured for x4"):
        Cascade(paths).super_resolve(images(4))
    with pytest.raises(ValueError, match=r"stages: a cascade needs checkpoints"):
        Cascade([])
    with pytest.raises(ValueError, match="samplers: 1 for 2 stages"):
        Cascade(paths, samplers=[EDMHeun(3)])
    with pytest.raises(CheckpointError, match=r"absent.ckpt: no such checkpoint"):
        Cascade([str(tmp_path / "absent.ckpt")])
    generator = checkpoint(tmp_path, "generator", "EDM", scale=4)
    with pytest.raises(ValueError, match=r"first.ckpt is no generator .* use configs/command/cascade.yaml"):
        Cascade(paths, generate=True)
    for stages, generate in (([generator, paths[1]], False), ([generator, generator], True)):
        with pytest.raises(ValueError, match=r"generator.ckpt generates images and ignores those it is given"):
            Cascade(stages, generate=generate)
    unsaid: SuperResolver = build(config("Relay", 2), "unsaid")
    write_checkpoint(unsaid, {"model": config("Relay", 2)}, tmp_path / "unsaid.ckpt")
    with pytest.raises(CheckpointError, match=r"unsaid.ckpt does not say what scale"):
        Cascade([str(tmp_path / "unsaid.ckpt")])
