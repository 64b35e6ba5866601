"""Going on with a run whose optimizer or scheduler was given other arguments: they beat those of the checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn


def reconfigure(
    checkpoint: dict[str, Any],
    configured: Mapping[str, Any],
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
) -> list[str]:
    """Replaces what the checkpoint stores of optimizer and scheduler, where their arguments have changed.

    Where nothing has changed the checkpoint stays as it is, so that a run goes on exactly. Otherwise the optimizer
    keeps what it has accumulated of each parameter, all its settings become the configured ones, and the scheduler is
    the one that a run with the new arguments would have at this step.

    Args:
        checkpoint: Content of a checkpoint of a training run; its states are changed in place.
        configured: The model's arguments now, with the descriptions of `optimizer` and `lr_scheduler`.
        optimizer: From parameters to the configured optimizer.
        lr_scheduler: From an optimizer to the configured scheduler.

    Returns:
        What has changed, such as "optimizer lr 0.001 -> 1e-06"; empty where nothing has.

    Raises:
        ValueError: the change cannot be made to this run; the message says why.
    """
    stored = checkpoint["hyper_parameters"]
    changes = [
        f"{part} {change}"
        for part in ("optimizer", "lr_scheduler")
        for change in differences(stored.get(part), configured.get(part))
    ]
    if not changes:
        return []

    before, now = (_class_path(arguments.get("optimizer")) for arguments in (stored, configured))
    if before != now:
        raise ValueError(
            f"the checkpoint was trained with {before}, whose state cannot become that of {now}: leave the optimizer's "
            "class as it was, or begin a new run without --ckpt_path"
        )
    states = checkpoint["optimizer_states"]
    if len(states) != 1 or len(states[0]["param_groups"]) != 1:
        raise ValueError(
            f"{', '.join(changes)}: cannot be changed in a run with several optimizers or groups of parameters; leave "
            "these arguments as they were"
        )

    fresh = _one_step_of(optimizer)
    _check_state(fresh, states[0]["state"], changes)
    schedules = checkpoint["lr_schedulers"]
    step = schedules[0]["last_epoch"] if schedules else checkpoint["global_step"]
    checkpoint["lr_schedulers"] = [] if lr_scheduler is None else [_schedule_at(step, lr_scheduler, fresh)]

    settings = fresh.state_dict()["param_groups"][0]
    states[0]["param_groups"] = [{**settings, "params": states[0]["param_groups"][0]["params"]}]
    return [*changes, f"lr at step {step} is now {settings['lr']:g}"]


def differences(before: Any, now: Any) -> list[str]:
    """What differs between two descriptions `{"class_path": ..., "init_args": ...}` of a part, or None without it.

    An argument that is not stored, as one that a newer PyTorch added, counts as unchanged.
    """
    if _class_path(before) != _class_path(now):
        return [f"{_class_path(before)} -> {_class_path(now)}"]
    if before is None:
        return []
    old, new = before.get("init_args", {}), now.get("init_args", {})
    return [
        f"{name} {_shown(old[name])} -> {_shown(value)}"
        for name, value in new.items()
        if name in old and _shown(old[name]) != _shown(value)
    ]


def _class_path(part: Any) -> str | None:
    return None if part is None else str(part["class_path"])


def _shown(value: Any) -> str:
    """A value as text; a tuple and the list that YAML makes of it are the same."""
    return str(list(value) if isinstance(value, tuple) else value)


def _one_step_of(optimizer: OptimizerCallable) -> torch.optim.Optimizer:
    """The configured optimizer of one parameter, after a step: it has the state that it keeps for each parameter."""
    parameter = nn.Parameter(torch.zeros(1))
    built = optimizer([parameter])
    parameter.grad = torch.zeros(1)
    built.step()
    return built


def _check_state(fresh: torch.optim.Optimizer, stored: Mapping[int, Mapping[str, Any]], changes: list[str]) -> None:
    """Refuses settings with which the optimizer needs more than the checkpoint holds, as Adam with amsgrad does."""
    needed = {name for state in fresh.state.values() for name in state}
    lacking = sorted(name for state in list(stored.values())[:1] for name in needed - set(state))
    if lacking:
        raise ValueError(
            f"{', '.join(changes)}: the optimizer would need {', '.join(lacking)}, which the checkpoint does not hold; "
            "leave these arguments as they were, or begin a new run without --ckpt_path"
        )


def _schedule_at(step: int, lr_scheduler: LRSchedulerCallable, fresh: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of the configured scheduler after `step` steps, to which it also brings the settings of `fresh`."""
    scheduler = lr_scheduler(fresh)
    try:
        for _ in range(step):
            scheduler.step()
    except ValueError as error:
        raise ValueError(
            f"lr_scheduler: {type(scheduler).__name__} cannot go on at step {step} of the checkpoint: {error}; give it "
            "arguments that reach beyond"
        ) from error
    return scheduler.state_dict()
