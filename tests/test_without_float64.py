"""Every method trains, validates and samples on a device that has no float64; see tests/without_float64.py."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.batch import make_batch
from lightning_modules.config import CONFIGS
from lightning_modules.running.experiment import run
from tests.tiny.experiments import arguments
from tests.without_float64 import NAME, OnAccelerator, accelerator

SINGLE = "lightning.pytorch.strategies.SingleDeviceStrategy"
HERE = ["--trainer.accelerator", NAME, "--trainer.strategy", SINGLE, "--trainer.strategy.init_args.device", NAME]
METHODS = "rrdb srdiff_yoda sr3 flow resshift dossr_pixel dossr_sd21 edm relay_x4 skipdiff_sr3".split()
REGION = CONFIGS / "region"
SPARSE = ["--config", str(REGION / "yoda_sobel.yaml"), "--config", str(REGION / "yoda_sparse.yaml")]
OPTION = "--model.init_args.region.init_args."
TILES = [f"{OPTION}tile", "16", f"{OPTION}halo", "8", f"{OPTION}dense_above", "0.9"]


def in_a_process_of_its_own(body: Callable[[], None]) -> None:
    """Runs `body` in a forked process, since a device cannot be unregistered; fails with what it raises."""
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        text = ""
        try:
            body()
        except BaseException:
            text = traceback.format_exc()
        with os.fdopen(send, "w") as file:
            file.write(text)
        os._exit(0)

    os.close(send)
    with os.fdopen(receive) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not text, text


def trained_and_sampled(command: list[str]) -> None:
    """Two steps and a validation of a tiny experiment, then an image of another size."""
    with accelerator():
        trained = run(["fit", *command, *HERE])
        assert trained.model.trainer.global_step == 2
        assert trained.model.trainer.strategy.root_device.type == NAME

        scale = trained.datamodule.scale
        image = torch.linspace(0, 1, 3 * 24 * 20).view(1, 3, 24, 20)
        method = trained.model.eval().to(NAME)  # Lightning brought it back
        batch = make_batch(image, ["a"], scale=scale, kernel="matlab")
        there = {name: value.to(NAME) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        enlarged = method.super_resolve(there)
        assert isinstance(enlarged, OnAccelerator)
        assert enlarged.cpu().isfinite().all() and enlarged.shape[-1] == 20 * scale


@pytest.mark.parametrize("name", METHODS)
def test_every_method_works_without_float64(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_a_process_of_its_own(lambda: trained_and_sampled(arguments(CONFIGS / f"{name}.yaml")))


def test_tiles_that_follow_the_attention_work_without_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment, srdiff, *tiny = arguments(CONFIGS / "srdiff.yaml")
    in_a_process_of_its_own(lambda: trained_and_sampled([experiment, srdiff, *SPARSE, *tiny, *TILES]))


def test_guidance_works_without_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment, sr3, *tiny = arguments(CONFIGS / "sr3.yaml")
    guidance = ["--config", str(CONFIGS / "guidance" / "sag.yaml")]
    in_a_process_of_its_own(lambda: trained_and_sampled([experiment, sr3, *guidance, *tiny]))


def test_the_stand_in_refuses_float64_and_strangers() -> None:
    def body() -> None:
        with accelerator():
            here, there = torch.ones(2), torch.ones(2, device=NAME)
            assert (there + 1).cpu().tolist() == [2.0, 2.0]
            for mistake in (
                lambda: there.double(),
                lambda: here.double().to(NAME),
                lambda: torch.zeros(2, dtype=torch.float64, device=NAME),
                lambda: torch.tensor([1.0], dtype=torch.float64, device=NAME),
            ):
                with pytest.raises(TypeError, match="has no float64"):
                    mistake()
            with pytest.raises(RuntimeError, match="meets one of"):
                there + here

    in_a_process_of_its_own(body)
