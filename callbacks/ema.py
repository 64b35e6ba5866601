"""An exponential moving average of the trainable parameters."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_modules.sharding import Sharded, like, whole


class EMA(Callback):
    """Validates, tests and predicts with the moving average of the trainable parameters.

    Lightning's `EMAWeightAveraging` copies the whole module, including frozen networks; this callback copies only the
    trainable parameters. Checkpoints follow Lightning's convention: `state_dict` holds the averages, and
    `current_model_state` the raw values of the averaged parameters, from which training resumes exactly. After training
    the model holds the averages.

    Args:
        decay: Weight of the old average in an update, in [0, 1).
        warmup: Start with a smaller decay, min(decay, (1 + n) / (10 + n)) after n updates, so that the average of a
            short run does not contain the initial weights.

    Raises:
        ValueError: `decay` is outside [0, 1).
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.warmup = decay, warmup
        self._updates = 0
        self._step = 0  # number of optimizer steps at the last update
        # The averages; while `_swapped`, the model holds the averages and this holds the raw values.
        self._shadow: dict[str, Tensor] = {}
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the strategy and the checkpoint callbacks.

        Raises:
            ValueError: the strategy is not known to work, or checkpoints would hold raw weights instead of averages.
        """
        if stage != TrainerFn.FITTING:
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | Sharded):
            raise ValueError(
                f"EMA does not know how {type(trainer.strategy).__name__} keeps parameters; use ddp, or "
                "configs/hardware/fsdp.yaml"
            )
        if any(isinstance(c, ModelCheckpoint) and c.save_weights_only for c in trainer.checkpoint_callbacks):
            raise ValueError(
                "ModelCheckpoint with save_weights_only does not call other callbacks, so its files would hold the raw "
                "weights; set save_weights_only: false to use EMA"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the averages from the current weights, or from a checkpoint's averages, on the model's device.

        Raises:
            ValueError: the checkpoint has averages of other parameters.
        """
        trained = trainable_parameters(pl_module)
        if self._shadow and self._shadow.keys() != trained.keys():
            different = sorted(self._shadow.keys() ^ trained.keys())
            raise ValueError(
                f"the checkpoint averages other parameters than are trained now: {', '.join(different[:6])}"
            )

        self._shadow = {
            name: torch.empty_like(value).copy_(like(self._shadow.get(name, value), value))
            for name, value in trained.items()
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the step at which training starts or resumes."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Updates the averages after each optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step

        current = list(trainable_parameters(pl_module).values())
        average = get_ema_multi_avg_fn(self._decay())  # type: ignore[no-untyped-call]
        average(list(self._shadow.values()), current, self._updates)
        self._updates += 1

    def _decay(self) -> float:
        return min(self.decay, (1 + self._updates) / (10 + self._updates)) if self.warmup else self.decay

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the averages into the model."""
        if self._shadow:
            self._swap(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the raw weights back into the model."""
        if self._shadow:
            self._swap(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the averages in the model; raw weights are kept for checkpoints until the run is torn down."""
        self._swap(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the raw weights."""
        self._shadow, self._swapped, self._updates = {}, False, 0

    @torch.no_grad()
    def _swap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchanges the values of the parameters and of `_shadow`; of both each process may hold a part."""
        if isinstance(trainer.strategy, Sharded):
            trainer.strategy.spread()  # after a validation, for which all were collected
        for name, parameter in trainable_parameters(pl_module).items():
            held = parameter.clone()
            parameter.copy_(self._shadow[name])
            self._shadow[name].copy_(held)
        self._swapped = not self._swapped

    def state_dict(self) -> dict[str, Any]:
        """The number of updates, from which the warm-up computes the decay."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the number of updates."""
        self._updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the averages in `state_dict` and the raw values in `current_model_state`."""
        if not self._shadow:
            return

        weights = checkpoint["state_dict"]
        model = {name: weights[name] for name in self._shadow}
        shadow = whole(self._shadow)
        averages, raw = (model, shadow) if self._swapped else (shadow, model)
        checkpoint["state_dict"] = {**weights, **averages}
        checkpoint["current_model_state"] = dict(raw)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """When training resumes, restores the averages and the raw values of the parameters."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        raw = checkpoint.get("current_model_state")
        if raw is None:
            rank_zero_info("the checkpoint was written without EMA: the average starts from its weights")
            return

        self._shadow = {name: checkpoint["state_dict"][name].clone() for name in raw}
        with torch.no_grad():
            for name, value in raw.items():
                parameter = pl_module.get_parameter(name)
                parameter.copy_(like(value, parameter))


def trainable_parameters(pl_module: LightningModule) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
