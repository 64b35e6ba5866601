"""SinSR's distillation of any trained method into a student that answers in one evaluation (arXiv:2311.14760)."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, asking_for, model_config, no_file, read_checkpoint
from lightning_modules.config import build, load_method
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.edm_samplers import EDMHeun
from lightning_modules.diffusion.parameterization import Epsilon, Noised
from lightning_modules.diffusion.process import Process, expand
from lightning_modules.diffusion.randomness import KeyedNoise, Randn, StepDraws
from lightning_modules.diffusion.samplers import DDIM, AfterStep, DPMSolverPlusPlus, Memory, Sampler
from lightning_modules.diffusion.yoda import Fill
from lightning_modules.float64 import widest
from lightning_modules.super_resolver import SuperResolver, check_batch

TEACHER = "a trained diffusion method", "--model.init_args.teacher"
SAMPLER = "--model.init_args.teacher_sampler"


class Distill(SuperResolver):
    """Trains a student on what a frozen teacher makes of noise and a low-resolution image; the student is what is used.

    The teacher's deterministic sampler maps the start x_T of a run to a clean state. The student, the same network with
    the teacher's weights at first, learns to give that state for that x_T in one evaluation. SinSR's
    consistency-preserving distillation lets it learn from the target images as well. With `f(x)` the student's estimate
    of the clean state for the start x of a run, and `g(x0)` its estimate of the start that leads to x0, by the same
    network told the last time of the teacher's run, the loss is the sum of three means over the state:

        |f(x_T) - teacher(x_T)|^2 + |g(teacher(x_T)) - x_T|^2 + |f(g(x0)) - x0|^2, x0 the target, g(x0) without gradient

    Each has a weight, 1 in the paper. The network alone is trained. A student's checkpoint describes its method and
    holds nothing of the teacher, so that it enlarges images without the teacher's file.

    What differs from SinSR, because any process can be the teacher's: g gives the noise in x_T, of unit variance, so
    that its loss has the same scale at every noise level (SinSR's, on x_T of ResShift, is `kappa^2 shift_T` = 3.9 times
    as large), and its input is scaled for the time that the network is told. A network that predicts noise is read by
    `LimitedEpsilon`: from almost pure noise its estimate of the clean state would magnify errors without limit. The
    teacher samples with its guidance, which the student learns and does not need.

    Under YODA, waiting pixels hold the noise of x_T throughout the teacher's run, so that x_T determines its result.
    The student diffuses the pixels that its teacher's last step diffuses, evaluated around their tiles where the region
    has tiles, and leaves the others as they came. The losses are those of these pixels.

    Args:
        teacher: Checkpoint of a trained diffusion method; its averaged weights where it was trained with EMA. It is
            read for training alone.
        teacher_sampler: A deterministic sampler for the teacher; None for its own. DDIM is SinSR's for ResShift.
        distill_weight: Weight of the first term.
        inverse_weight: Weight of the second term.
        target_weight: Weight of the third term.
        optimizer: From the network's parameters to an optimizer.
        lr_scheduler: From an optimizer to a scheduler, stepped each training step.
        draws: See `DiffusionModule`.
        tile: See `DiffusionModule`.
        overlap: See `DiffusionModule`.
        student: The student's method as JSON, which checkpoints store; None: that of the teacher in one step.
        teacher_sha256: SHA-256 of the teacher's file, which checkpoints store.

    Raises:
        CheckpointError: the teacher's checkpoint is unusable, or holds a student.
        ValueError: it holds no diffusion method, its sampler draws noise in its steps or takes one step, or no term of
            the loss has a positive weight.
    """

    def __init__(
        self,
        teacher: str,
        teacher_sampler: Sampler | None = None,
        distill_weight: float = 1.0,
        inverse_weight: float = 1.0,
        target_weight: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        draws: int = 1,
        tile: int | None = None,
        overlap: int = 64,
        student: str | None = None,
        teacher_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.teacher, self.teacher_sampler, self.teacher_sha256 = teacher, teacher_sampler, teacher_sha256
        self.weights = {"loss": distill_weight, "inverse": inverse_weight, "target": target_weight}
        self.optimizer, self.lr_scheduler, self.draws = optimizer, lr_scheduler, draws
        if min(self.weights.values()) < 0 or max(self.weights.values()) == 0:
            raise ValueError(
                f"distill_weight: {distill_weight}, inverse_weight: {inverse_weight} and target_weight: "
                f"{target_weight} must not be negative, and one of them positive"
            )

        self._taught_by: Teacher | None = None  # no module, so that nothing of the teacher is this module's
        if student is None:
            self._taught_by = Teacher(teacher, teacher_sampler)
            self.teacher_sha256, student = self._taught_by.sha256, json.dumps(self._taught_by.student())
            self.hparams.update(student=student, teacher_sha256=self.teacher_sha256)

        description = json.loads(student)
        options = {"draws": draws, "tile": tile, "overlap": overlap}
        described = {**description, "init_args": {**description["init_args"], **options}}
        self.student = cast(DiffusionModule, build(described, f"{teacher}, distilled"))

        # Parts beside the network that were trained have no source but the checkpoint.
        parts = dict(self.student.named_children())
        trained = {name for name, part in parts.items() if any(each.requires_grad for each in part.parameters())}
        kept = sorted((trained | set(self.student.keeps_frozen)) - {"network"})
        self.keeps_frozen = tuple(f"student.{name}" for name in kept)
        for name in trained - {"network"}:
            parts[name].requires_grad_(False)

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], *, splits: Collection[str], **_: Any) -> str | None:
        """See `look_ahead.Part.missing`: the teacher, where there is training."""
        return no_file(arguments["teacher"], *TEACHER) if "train" in splits else None

    def setup(self, stage: str) -> None:
        """Reads the teacher for training; where that begins, the student takes its weights.

        Raises:
            CheckpointError: the teacher's checkpoint is unusable, or another one than the run began with.
            ValueError: the data is of another scale than the teacher's, or its sampler another than the run began with.
        """
        if stage != "fit":
            return
        teacher = self._taught_by or Teacher(self.teacher, self.teacher_sampler)
        self._taught_by = teacher
        if self.teacher_sha256 not in (None, teacher.sha256):
            raise CheckpointError(
                f"{self.teacher}: is another file than the teacher that the run began with, whose SHA-256 is "
                f"{self.teacher_sha256}; give that one as {TEACHER[1]}"
            )

        before, now = self.one_step.whose, teacher.sampler.name(teacher.method.process)
        if before != now:
            raise ValueError(
                f"{SAMPLER}: the run began with {before} and cannot go on with {now}; leave the sampler as it was, or "
                "begin a new run without --ckpt_path"
            )
        scale = getattr(getattr(self.trainer, "datamodule", None), "scale", None)
        if scale is not None:
            teacher.check_scale(scale)
        if self.trainer.ckpt_path is None:
            self.student.load_state_dict(teacher.method.state_dict())

    @property
    def one_step(self) -> "OneStep":
        """The student's sampler."""
        return cast(OneStep, self.student.sampler)

    # The interface of SuperResolver: the student's.

    @property
    def stride(self) -> int:
        """The stride of the student."""
        return self.student.stride

    @property
    def smallest(self) -> int:
        """The smallest side that the student accepts, in pixels."""
        return self.student.smallest

    @property
    def padded_to(self) -> int:
        """See `SuperResolver.padded_to`."""
        return self.student.padded_to

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """Images `[B,3,H,W]` of the student, in one evaluation unless another `sampler` is asked for."""
        return self.student.enlarge(batch, sampler)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """See `DiffusionSampling.predict`: in smaller tiles where memory is short."""
        return self.student.predict(batch)

    def protocol(self) -> str:
        """One step, and the sampler that was distilled, such as "one-step-of-ddim-15"."""
        return self.student.protocol()

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The pictures of the student."""
        return self.student.preview(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the share of the pixels that YODA's mask never let diffuse."""
        if self.student.region is not None:
            self.log("val/never_diffused", self.student.never_diffused)

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        if self.student.region is not None:
            self.log("test/never_diffused", self.student.never_diffused)

    def on_predict_epoch_end(self) -> None:
        """See `DiffusionSampling.on_predict_epoch_end`."""
        self.student.on_predict_epoch_end()

    # Training.

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Logs each term of the loss, weighted; returns their sum."""
        losses = self.losses(batch)
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch["key"]))
        return {"loss": torch.stack(list(losses.values())).sum()}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the loss: `loss`, the distance to the teacher's result, `inverse` and `target`.

        A term whose weight is 0 is left out.
        """
        student, process, teacher = self.student, self.student.process, self._taught_by
        assert teacher is not None  # `setup` read it
        randn = fresh(self.step_draws, len(batch["key"]), batch["lr"].device)
        taught, mask = teacher.answer(batch, randn.fork())

        batch, anchor = student.anchored(batch)
        denoiser = student.denoiser(student.condition(batch, anchor), anchor)
        noise = process.noise(anchor, randn)
        found = {}
        if self.weights["loss"]:
            found["loss"] = squared(self.answer(denoiser, noise), taught, mask)
        if self.weights["inverse"]:
            found["inverse"] = squared(self.inverse(denoiser, taught), noise, mask)
        if self.weights["target"]:
            x0 = student.space.encode_target(batch["hr"], batch["up"], randn)
            with torch.no_grad():
                noise = self.inverse(denoiser, x0)
            found["target"] = squared(self.answer(denoiser, noise), x0, mask)
        return {name: self.weights[name] * value for name, value in found.items()}

    def answer(self, denoiser: Denoiser, noise: Tensor) -> Tensor:
        """The estimate of the clean state from the start that holds `noise`, `[B,C,h,w]` both; f above."""
        t = self.one_step.first.expand(len(noise))
        return denoiser.estimate(denoiser.process.start(anchor=denoiser.anchor, t=t, noise=noise), t)

    def inverse(self, denoiser: Denoiser, x0: Tensor) -> Tensor:
        """The noise in the start that leads to the clean state `x0`, `[B,C,h,w]` both; g above."""
        return denoiser.output(x0, self.one_step.last.expand(len(x0)))


class Teacher:
    """A frozen method that samples without drawing noise in its steps.

    Args:
        path: Its checkpoint.
        sampler: Replaces its own; None keeps it.

    Raises:
        CheckpointError: the checkpoint is unusable, or holds a student.
        ValueError: it holds no diffusion method, or the sampler draws noise in its steps or takes one step.
    """

    def __init__(self, path: str, sampler: Sampler | None) -> None:
        with asking_for(*TEACHER):
            self.description = model_config(read_checkpoint(path, weights=False), path)
            if self.description["class_path"] == class_path(Distill):
                raise CheckpointError(
                    f"{path}: holds a student, which answers in one evaluation already; its own teacher was "
                    f"{self.description['init_args']['teacher']}"
                )
            method = load_method(path)
            self.sha256 = sha256(path)
        if not isinstance(method, DiffusionModule):
            raise ValueError(
                f"{path}: holds a {type(method).__name__}, which takes no sampling steps that could be distilled; give "
                f"{' as '.join(TEACHER)}"
            )

        self.path, self.method = path, method.requires_grad_(False)
        self.sampler = sampler or method.sampler
        check_sampler(self.sampler, method.process, path)
        times = self.sampler.grid(method.process)
        self.first, self.last = times[0], times[-2]

    def student(self) -> dict[str, Any]:
        """`{"class_path", "init_args"}` of the same method in one step, without guidance and what trained it."""
        process, arguments = self.method.process, dict(self.description["init_args"])
        arguments = {name: value for name, value in arguments.items() if name not in ("optimizer", "lr_scheduler")}
        times = {"first": self.first.item(), "last": self.last.item()}
        arguments |= {"guidance": None, "sampler": part(OneStep, whose=self.sampler.name(process), **times)}

        read, t = self.method.parameterization, self.first[None]
        if type(read) is Epsilon and process.std(t) > process.alpha(t):
            arguments["parameterization"] = part(LimitedEpsilon, label=read.clock)
        return {"class_path": self.description["class_path"], "init_args": arguments}

    def check_scale(self, scale: int) -> None:
        """Refuses data that enlarges by another factor than the teacher.

        Raises:
            ValueError: the scales disagree.
        """
        trained = self.method.trained_scale
        if trained not in (None, scale):
            raise ValueError(
                f"{self.path}: the teacher was trained for x{trained}, but the data enlarges x{scale}: set "
                f"--data.init_args.scale {trained}, or give a teacher for x{scale} as {TEACHER[1]}"
            )

    @torch.no_grad()
    def answer(self, batch: Batch, randn: "Again") -> tuple[Tensor, Tensor | None]:
        """The clean states `[B,C,h,w]` that it samples, and which pixels diffuse in the last step, boolean `[B,1,h,w]`.

        Args:
            batch: Images whose sides are multiples of the stride.
            randn: Draws the noise of the start.

        Raises:
            ValueError: the images are of another scale than it was trained for.
        """
        self.check_scale(check_batch(batch))
        method = self.method.to(batch["lr"].device).eval()
        _, denoiser, _, _ = method.prepare(batch, self.sampler)
        if denoiser.activity is None:
            return self.sampler(denoiser, randn), None
        fill = Fill(method.process, denoiser.anchor, denoiser.activity, randn.fork(), fixed=True)
        state = self.sampler(denoiser.whole(), randn, fill)
        return state, denoiser.activity.mask(self.last.expand(len(state)))


class OneStep(Sampler):
    """One evaluation, from the start of another sampler's run to the clean state.

    Args:
        whose: Name of the other sampler.
        first: Time at which its run starts.
        last: Time at which its last step starts; under YODA, the pixels that diffuse there diffuse here.
    """

    def __init__(self, whose: str, first: float, last: float) -> None:
        super().__init__(steps=1)
        self.whose = whose
        self.first, self.last = (torch.tensor(time, dtype=torch.float64) for time in (first, last))

    def name(self, process: Process) -> str:
        """See `Sampler.name`: such as "one-step-of-ddim-15"."""
        return f"one-step-of-{self.whose}"

    def grid(self, process: Process) -> Tensor:
        """The start and 0, float64 `[2]`."""
        return torch.stack([self.first, 0 * self.first])

    def step(
        self, denoiser: Denoiser, x_t: Tensor, memory: Memory, *, t: Tensor, s: Tensor, randn: Randn
    ) -> tuple[Tensor, Memory]:
        """The estimate of the clean state."""
        return denoiser(x_t, t), ()

    def follow(self, times: Tensor, denoiser: Denoiser, randn: Randn, after_step: AfterStep | None) -> Tensor:
        """See `Sampler.follow`; the mask is that of `last`, in the step and after it."""
        last = self.last.expand(len(denoiser.anchor))
        x = super().follow(times, denoiser.during(last), randn, None)
        return x if after_step is None else after_step(x, t=last, s=0 * last)


class LimitedEpsilon(Epsilon):
    """Noise prediction that never magnifies errors of the network, for estimates from almost pure noise.

    `x0 = anchor + gain (noise_of_anchor - output)`, with the noise that `x_t` would hold if the clean state were the
    anchor. With `gain = std / alpha` that is `Epsilon`'s estimate; here the gain is 1 where that is more. A network
    that predicts the noise of almost pure noise well then begins near the anchor, the enlarged image.

    Args:
        label: How the time is given to the network, see `noise_label`.
    """

    def target(self, process: Process, noised: Noised) -> Tensor:
        """The output from which `x0` gives the true clean state."""
        of_anchor, gain = self._of_anchor(process, noised.x_t, noised.anchor, noised.t)
        return of_anchor - (noised.x0 - noised.anchor) / gain

    def x0(self, process: Process, output: Tensor, *, x_t: Tensor, anchor: Tensor, t: Tensor) -> Tensor:
        """`anchor + gain (noise_of_anchor - output)`."""
        of_anchor, gain = self._of_anchor(process, x_t, anchor, t)
        return anchor + gain * (of_anchor - output)

    def _of_anchor(self, process: Process, x_t: Tensor, anchor: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The noise in `x_t` if the clean state were the anchor, `[B,C,H,W]`, and the gain, `[B,1,1,1]`."""
        std = expand(process.std(t), x_t)
        gain = expand(process.std(t) / process.alpha(t), x_t).clamp(max=1)
        return (x_t - process.mean(x0=anchor, anchor=anchor, t=t)) / std, gain


class Again(KeyedNoise):
    """Noise that is the same in float32 and float64, up to rounding, so that it can be drawn again in the other."""

    def __call__(self, like: Tensor) -> Tensor:
        """See `KeyedNoise.__call__`; drawn in float64 where there is, then rounded."""
        return super().__call__(like.to(widest(like.device))).to(like)


def fresh(draws: StepDraws, images: int, device: torch.device) -> Again:
    """Noise for the images of this process in a training step."""
    seeds = draws.of_all(lambda count: torch.randint(2**62, (count,)), images).tolist()
    return Again(torch.Generator(device).manual_seed(seed) for seed in seeds)


def squared(difference_of: Tensor, to: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of `[B,C,h,w]`, over the pixels of the mask, boolean `[B,1,h,w]`; a scalar."""
    squares = (difference_of.float() - to.float()).square()
    if mask is None:
        return squares.mean()
    return (squares * mask).sum() / (mask.sum() * squares.shape[1]).clamp(min=1)


def part(kind: type, **arguments: Any) -> dict[str, Any]:
    """`{"class_path": ..., "init_args": ...}` of a class."""
    return {"class_path": class_path(kind), "init_args": arguments}


def class_path(kind: type) -> str:
    """The dotted path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def check_sampler(sampler: Sampler, process: Process, path: str) -> None:
    """Refuses a teacher's sampler that no student can learn from.

    Raises:
        ValueError: it draws noise in its steps, or takes one step.
    """
    name, steps = sampler.name(process), len(sampler.grid(process)) - 1
    if steps < 2:
        raise ValueError(
            f"{path}: the teacher's sampler, {name}, takes one step, which leaves nothing to distil: give one of "
            f"several steps as {SAMPLER}, or another teacher"
        )
    if sampler.adds_noise:
        raise ValueError(
            f"{path}: the teacher's sampler, {name}, draws noise in its steps, so that its start does not determine "
            f"its result: give {deterministic(sampler, process)} as {SAMPLER}"
        )


def deterministic(sampler: Sampler, process: Process) -> str:
    """What to take instead of a sampler that draws noise."""
    if isinstance(sampler, EDMHeun):
        return f"{class_path(type(sampler))} with eta: 0" + (" and churn: 0" if sampler.churn > 0 else "")
    ddim = f"{class_path(DDIM)} with eta: 0"
    return f"{ddim} or {class_path(DPMSolverPlusPlus)} with stochastic: false" if process.scalar_mean else ddim


def sha256(path: str) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
