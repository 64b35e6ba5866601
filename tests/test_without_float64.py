"""Every method trains, validates and samples on a device that has no float64; see tests/without_float64.py."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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


def reporting(sender: Connection, folder: Path, body: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Runs `body` in `folder` and sends what it raises, as a text."""
    text = ""
    try:
        os.chdir(folder)
        body(*arguments)
    except BaseException:
        text = traceback.format_exc()
    sender.send(text)


def in_a_process_of_its_own(folder: Path, body: Callable[..., None], *arguments: Any) -> None:
    """Runs `body` in a new process, and fails with what it raises there.

    A device cannot be unregistered; nor is one known to gradients if it is registered after the first of them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=reporting, args=(sender, folder, body, arguments))
    process.start()
    sender.close()
    try:
        text = receiver.recv()
    except EOFError:
        text = "the process ended without a word"
    process.join()
    assert not text, text
    assert process.exitcode == 0


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
def test_every_method_works_without_float64(name: str, tmp_path: Path) -> None:
    in_a_process_of_its_own(tmp_path, trained_and_sampled, arguments(CONFIGS / f"{name}.yaml"))


def test_tiles_that_follow_the_attention_work_without_float64(tmp_path: Path) -> None:
    experiment, srdiff, *tiny = arguments(CONFIGS / "srdiff.yaml")
    in_a_process_of_its_own(tmp_path, trained_and_sampled, [experiment, srdiff, *SPARSE, *tiny, *TILES])


def test_guidance_works_without_float64(tmp_path: Path) -> None:
    experiment, sr3, *tiny = arguments(CONFIGS / "sr3.yaml")
    guidance = ["--config", str(CONFIGS / "guidance" / "sag.yaml")]
    in_a_process_of_its_own(tmp_path, trained_and_sampled, [experiment, sr3, *guidance, *tiny])


def mistakes_are_refused() -> None:
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


def test_the_stand_in_refuses_float64_and_strangers(tmp_path: Path) -> None:
    in_a_process_of_its_own(tmp_path, mistakes_are_refused)
