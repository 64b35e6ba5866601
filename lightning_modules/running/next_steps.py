"""What a finished training left, and what to type next."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def next_steps(trainer: Trainer, folder: Path) -> Iterator[str]:
    """Lines with the paths of a training and the commands that use them; none where it left no checkpoint.

    Args:
        trainer: When it is done.
        folder: The run's.
    """
    keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
    last = next((Path(keeper.last_model_path) for keeper in keepers if keeper.last_model_path), None)
    last = last or folder / "checkpoints" / "last.ckpt"  # as the last step's is written by `Interruptions`
    if not last.is_file():
        return

    yield f"{trainer.global_step} steps are done, and in {folder} are config.yaml, metrics.csv, samples/ and scores/"
    yield f"  last      {last}"
    best = next((keeper for keeper in keepers if keeper.monitor and keeper.best_model_path), None)
    chosen = last
    if best is not None and best.best_model_score is not None:
        chosen = Path(best.best_model_path)
        yield f"  best      {chosen} ({best.monitor} {float(best.best_model_score):.4g})"

    named, config = shlex.quote(str(chosen)), shlex.quote(str(folder / "config.yaml"))
    further, more = 2 * trainer.max_steps, ""
    if trainer.max_steps > 0:
        more = f" --trainer.max_steps {further}"
        if any(hasattr(each.scheduler, "total_steps") for each in trainer.lr_scheduler_configs):
            more += f" --model.init_args.lr_scheduler.init_args.total_steps {further}"
    yield "next"
    yield f"  test      lightning test --ckpt_path {named} --on set5 set14"
    yield f"  enlarge   lightning enlarge PHOTOS -o FOLDER --weights {named}"
    yield f"  go on     lightning fit --config {config} --ckpt_path {shlex.quote(str(last))}{more}"
