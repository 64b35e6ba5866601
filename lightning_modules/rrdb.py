"""The RRDB network trained with an L1 loss: a super-resolver by itself, and the pretraining of SRDiff's encoder."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.nn.functional import l1_loss

from datamodules.batch import Batch
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.networks.rrdb import RRDBNet
from lightning_modules.super_resolver import SuperResolver, in_memory_format


class RRDBRegressor(SuperResolver):
    """Regresses the target from the low-resolution image with an L1 loss (Section 3.3 of SRDiff, arXiv:2104.14951).

    Args:
        network: The RRDB network.
        optimizer: From trainable parameters to an optimizer.
        lr_scheduler: From an optimizer to a scheduler, stepped each training step.
    """

    def __init__(
        self,
        network: RRDBNet,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = in_memory_format(network, torch.channels_last)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """The L1 distance between the network's image and the target, both in [-1, 1]."""
        loss = l1_loss(self.network(batch["lr"]).float(), batch["hr"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["key"]))
        return loss

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """The network's image `[B,3,H,W]`; `sampler` is not used."""
        image: Tensor = self.network(batch["lr"])
        return image

    def as_network(self) -> RRDBNet:
        """The network: it is all there is."""
        return self.network

    def protocol(self) -> str:
        """Returns "regression": one evaluation of the network, nothing is sampled."""
        return "regression"
