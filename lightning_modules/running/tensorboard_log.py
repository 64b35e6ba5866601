"""TensorBoard's files of a run, in the run's own folder."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from lightning_modules.running.run_log import RunLog


class TensorBoardLog(TensorBoardLogger):
    """Writes to `tensorboard` in the run's folder, so that TensorBoard names a run after experiment and version.

    A run that goes on in its folder goes on in TensorBoard as well. `RunLog` stands before it in the list of loggers.

    Args:
        save_dir: Folder of all experiments; used where there is no `RunLog`.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, default_hp_metric=False)
        self.run_log: RunLog | None = None

    @property
    def log_dir(self) -> str:
        """The folder."""
        return super().log_dir if self.run_log is None else str(Path(self.run_log.log_dir) / "tensorboard")
