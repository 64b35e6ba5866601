"""Going on with a run: exactly where nothing has changed, and with what is configured where it has."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lightning_modules.checkpoint import write_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.resuming import differences, reconfigure
from lightning_modules.running.experiment import run
from tests.tiny.experiments import CONFIGS, arguments

RRDB = CONFIGS / "rrdb.yaml"
OPTIMIZER, SCHEDULER = "--model.init_args.optimizer", "--model.init_args.lr_scheduler"
ONE_CYCLE = [SCHEDULER, "torch.optim.lr_scheduler.OneCycleLR", f"{SCHEDULER}.init_args.max_lr", "1e-3"]


def part(kind: type, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def trained(optimizer: Callable[..., Any], scheduler: Callable[..., Any] | None, steps: int) -> tuple[nn.Linear, Any]:
    """A model after some steps, and what a checkpoint of it holds."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    used = optimizer(model.parameters())
    schedule = None if scheduler is None else scheduler(used)
    for _ in range(steps):
        used.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        used.step()
        if schedule is not None:
            schedule.step()
    states = {
        "optimizer_states": [used.state_dict()],
        "lr_schedulers": [] if schedule is None else [schedule.state_dict()],
        "global_step": steps,
    }
    return model, states


def changed(
    states: dict[str, Any],
    before: dict[str, Any],
    now: dict[str, Any],
    optimizer: Callable[..., Any],
    scheduler: Callable[..., Any] | None = None,
) -> list[str]:
    return reconfigure({**states, "hyper_parameters": before}, now, optimizer, scheduler)


def test_nothing_is_touched_where_nothing_has_changed() -> None:
    _, states = trained(partial(Adam, lr=0.1), partial(StepLR, step_size=2), 3)
    stored = {"optimizer": part(Adam, lr=0.1, betas=[0.9, 0.999]), "lr_scheduler": part(StepLR, step_size=2)}
    given = {"optimizer": part(Adam, lr=0.1, betas=(0.9, 0.999)), "lr_scheduler": part(StepLR, step_size=2)}
    checkpoint = {**states, "hyper_parameters": stored}
    assert reconfigure(checkpoint, given, partial(Adam, lr=0.2), None) == []
    assert checkpoint["optimizer_states"] is states["optimizer_states"]
    assert checkpoint["lr_schedulers"] is states["lr_schedulers"]


def test_changed_arguments_of_the_optimizer_replace_the_stored_and_its_moments_stay() -> None:
    model, states = trained(partial(Adam, lr=0.1), None, 3)
    moments = {index: dict(state) for index, state in states["optimizer_states"][0]["state"].items()}
    before = {"optimizer": part(Adam, lr=0.1, weight_decay=0.0)}
    now = {"optimizer": part(Adam, lr=1e-6, weight_decay=0.5)}
    said = changed(states, before, now, partial(Adam, lr=1e-6, weight_decay=0.5))
    assert said == ["optimizer lr 0.1 -> 1e-06", "optimizer weight_decay 0.0 -> 0.5", "lr at step 3 is now 1e-06"]

    resumed = Adam(model.parameters(), lr=1e-6, weight_decay=0.5)
    resumed.load_state_dict(states["optimizer_states"][0])
    assert (resumed.param_groups[0]["lr"], resumed.param_groups[0]["weight_decay"]) == (1e-6, 0.5)
    for index, parameter in enumerate(model.parameters()):
        for name, value in moments[index].items():
            torch.testing.assert_close(resumed.state[parameter][name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stored", "scheduler", "described"),
    [
        (partial(StepLR, step_size=2), partial(StepLR, step_size=3, gamma=0.5), part(StepLR, step_size=3, gamma=0.5)),
        (partial(StepLR, step_size=2), partial(OneCycleLR, max_lr=0.3, total_steps=20), part(OneCycleLR, max_lr=0.3)),
        (None, partial(StepLR, step_size=2), part(StepLR, step_size=2)),
        (partial(StepLR, step_size=2), None, None),
    ],
    ids=["another argument", "another class", "one more", "one less"],
)
def test_the_scheduler_goes_on_as_one_that_was_there_from_the_beginning(
    stored: Callable[..., Any] | None, scheduler: Callable[..., Any] | None, described: dict[str, Any] | None
) -> None:
    optimizer = partial(Adam, lr=0.1)
    _, states = trained(optimizer, stored, 7)
    _, wanted = trained(optimizer, scheduler, 7)
    before = {"optimizer": part(Adam, lr=0.1), "lr_scheduler": stored and part(StepLR, step_size=2, gamma=0.1)}
    checkpoint = {**states, "hyper_parameters": before}
    assert reconfigure(checkpoint, {"optimizer": part(Adam, lr=0.1), "lr_scheduler": described}, optimizer, scheduler)
    assert checkpoint["lr_schedulers"] == wanted["lr_schedulers"]
    assert checkpoint["optimizer_states"][0]["param_groups"] == wanted["optimizer_states"][0]["param_groups"]


def test_a_changed_rate_is_that_of_the_whole_schedule() -> None:
    schedule = partial(StepLR, step_size=2, gamma=0.5)
    _, states = trained(partial(Adam, lr=0.1), schedule, 5)
    before, now = ({"optimizer": part(Adam, lr=lr), "lr_scheduler": part(StepLR)} for lr in (0.1, 0.8))
    assert changed(states, before, now, partial(Adam, lr=0.8), schedule)[-1] == "lr at step 5 is now 0.2"
    assert states["optimizer_states"][0]["param_groups"][0]["lr"] == 0.2


@pytest.mark.parametrize(
    ("before", "now", "optimizer", "scheduler", "said"),
    [
        ({"optimizer": part(Adam)}, {"optimizer": part(SGD)}, SGD, None, "trained with .*Adam, .* that of .*SGD"),
        (
            {"optimizer": part(Adam, amsgrad=False)},
            {"optimizer": part(Adam, amsgrad=True)},
            partial(Adam, amsgrad=True),
            None,
            "amsgrad False -> True: the optimizer would need max_exp_avg_sq",
        ),
        (
            {"optimizer": part(Adam)},
            {"optimizer": part(Adam), "lr_scheduler": part(OneCycleLR, total_steps=5)},
            Adam,
            partial(OneCycleLR, max_lr=1.0, total_steps=5),
            "OneCycleLR cannot go on at step 7 of the checkpoint",
        ),
    ],
    ids=["class", "state", "schedule"],
)
def test_what_cannot_be_changed_is_refused(
    before: dict[str, Any], now: dict[str, Any], optimizer: Any, scheduler: Any, said: str
) -> None:
    _, states = trained(partial(Adam, lr=0.1), None, 7)
    with pytest.raises(ValueError, match=said):
        changed(states, before, now, optimizer, scheduler)


def test_several_groups_of_parameters_cannot_be_changed_by_one_argument() -> None:
    model = nn.Linear(3, 2)
    used = Adam([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
    states = {"optimizer_states": [used.state_dict()], "lr_schedulers": [], "global_step": 0}
    with pytest.raises(ValueError, match=r"lr 0\.1 -> 0\.3: .* several optimizers or groups"):
        changed(states, {"optimizer": part(Adam, lr=0.1)}, {"optimizer": part(Adam, lr=0.3)}, partial(Adam, lr=0.3))


def test_an_argument_that_is_not_stored_counts_as_unchanged() -> None:
    assert differences(part(Adam, lr=0.1), part(Adam, lr=0.1, fused=None)) == []
    assert differences(None, None) == []


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two steps of four under OneCycleLR."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(["fit", *arguments(RRDB), *ONE_CYCLE, f"{SCHEDULER}.init_args.total_steps", "2"])
    return folder / "runs" / "rrdb" / "version_0" / "checkpoints" / "last.ckpt"


def go_on(begun: Path, folder: Path, patch: pytest.MonkeyPatch, *options: str) -> Any:
    patch.chdir(folder)
    return run(["fit", *arguments(RRDB), "--ckpt_path", str(begun), "--trainer.max_steps", "4", *options])


def test_what_is_typed_trains(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = [f"{SCHEDULER}=null", f"{OPTIMIZER}.init_args.lr", "1e-6"]
    resumed = go_on(begun, tmp_path, monkeypatch, *options)
    assert "--ckpt_path: optimizer lr 0.0002 -> 1e-06" in caplog.messages
    assert resumed.trainer.optimizers[0].param_groups[0]["lr"] == 1e-6

    stored = torch.load(begun, weights_only=True)["state_dict"]
    moved = max(float((value - stored[name]).abs().max()) for name, value in resumed.model.state_dict().items())
    assert 0 < moved < 4e-6  # two steps of Adam with this rate; the stored one would move the weights by about 1e-4


def test_a_longer_schedule_goes_on_to_its_end(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = go_on(begun, tmp_path, monkeypatch, *ONE_CYCLE, f"{SCHEDULER}.init_args.total_steps", "4")
    assert resumed.trainer.global_step == 4
    straight = OneCycleLR(Adam([nn.Parameter(torch.zeros(1))], lr=2e-4), max_lr=1e-3, total_steps=4)
    for _ in range(4):
        straight.optimizer.step()
        straight.step()
    assert resumed.trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == straight.get_last_lr()


def test_a_schedule_that_ends_before_training_is_refused_at_the_start(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match=r"OneCycleLR ends at total_steps: 2, but .* max_steps: 4; set .*total_steps 4"
    ):
        go_on(begun, tmp_path, monkeypatch)


def test_a_file_of_weights_alone_is_no_run_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = configured_model(write_config(tmp_path))
    write_checkpoint(model, config, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"weights\.ckpt: holds weights alone"):
        go_on(tmp_path / "weights.ckpt", tmp_path, monkeypatch)


def write_config(folder: Path) -> Path:
    """One file that composes the tiny experiment."""
    files = [value for value in arguments(RRDB) if value != "--config"]
    path = folder / "rrdb.yaml"
    path.write_text(f"compose: {files}\n")
    return path
