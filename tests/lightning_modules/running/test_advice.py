"""A training too short for its form is warned of; one that is meant is not."""

from pathlib import Path
from typing import Any

import pytest

from lightning_modules.config import CONFIGS
from lightning_modules.running.advice import CLEAN, EPSILON, unlikely_to_reach_bicubic
from lightning_modules.running.experiment import run
from tests.tiny.experiments import arguments


def config(form: str, steps: int, **others: Any) -> dict[str, Any]:
    return {
        "model": {"init_args": {"parameterization": {"class_path": form}, **others}},
        "trainer": {"max_steps": steps},
    }


def test_only_short_trainings_from_scratch_in_the_published_form_are_warned_of() -> None:
    assert "--model.init_args.parameterization" in (unlikely_to_reach_bicubic(config(EPSILON, 1000)) or "")
    assert unlikely_to_reach_bicubic(config(EPSILON, 400_000)) is None
    assert unlikely_to_reach_bicubic(config(EPSILON, -1)) is None
    assert unlikely_to_reach_bicubic(config(CLEAN, 1000)) is None
    assert unlikely_to_reach_bicubic(config(EPSILON, 1000, base_checkpoint="base.ckpt")) is None
    assert unlikely_to_reach_bicubic({**config(EPSILON, 1000), "ckpt_path": "last.ckpt"}) is None


def test_the_form_that_is_named_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = [*arguments(CONFIGS / "srdiff.yaml"), "--trainer.limit_val_batches", "0"]
    with pytest.warns(UserWarning, match=r"predict the noise, from scratch and in 1 steps only") as caught:
        run(["fit", *short, "--trainer.max_steps", "1"])
    assert CLEAN in "".join(str(warning.message) for warning in caught)
    model = run(["fit", *short, "--trainer.max_steps", "1", "--model.init_args.parameterization", CLEAN]).model
    assert type(model.parameterization).__name__ == "Clean"
