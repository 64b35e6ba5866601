"""`lightning enlarge`: photographs of any kind become larger ones, whole."""

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import seed_everything

from datamodules.images import ImageError, image_size
from datamodules.photograph import (
    FORMATS,
    QUALITY,
    Photograph,
    bytes_to_write,
    check_options,
    check_size,
    exists_message,
    read_photograph,
    stored_depth,
    write_photograph,
)
from lightning_modules.enlarging.enlarger import SAMPLERS, Enlarger
from lightning_modules.enlarging.files import Job, find, jobs_of
from lightning_modules.enlarging.gallery import Gallery
from lightning_modules.enlarging.progress import Bar, Plan, estimate, timed_tile
from lightning_modules.enlarging.sizes import Size, passes, story
from lightning_modules.sampling import TILE
from lightning_modules.super_resolver import UnusableImage
from lightning_modules.weight_files import WeightsError
from lightning_modules.weights import ENLARGER, is_name

GALLERY = "gallery.html"
READING = {8: 12, 16: 36}  # bytes of memory for each pixel of a photograph that is read, by its bits, as measured
WAITING = 16 * 2048 * 2048  # pixels of small photographs, as enlarged, that wait for others of their size
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """`lightning enlarge PHOTO... -o OUT`.

    Args:
        arguments: Everything after `lightning enlarge`.

    Returns:
        The exit code: 1 where a photograph could not be enlarged; the others are.

    Raises:
        ValueError: an option cannot be used.
        CheckpointError: the weights cannot be used.
        WeightsError: none are given, and this installation has no packaged model.
        OSError: a result cannot be written.
    """
    asked = _parser().parse_args(arguments)
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("lightning_modules.enlarging").setLevel(logging.INFO)
    size = _size(asked)
    check_options(asked.format or "png", asked.quality, skip_existing=asked.skip_existing, overwrite=asked.overwrite)

    found, failures = find(asked.photos)
    jobs, form = jobs_of(found, asked.output, asked.format)
    waiting = list(_not_in_the_way(jobs, failures, skip=asked.skip_existing, overwrite=asked.overwrite))
    skipped = len(jobs) - len(waiting) - sum(job.key in failures for job in jobs)
    written = 0
    if waiting:
        if asked.weights == ENLARGER and not is_name(ENLARGER) and not Path(ENLARGER).exists():
            raise WeightsError(
                f"{ENLARGER}, which enlarges where no --weights is given, is not in this installation: give a "
                "checkpoint or a name that lightning weights lists"
            )
        seed_everything(asked.seed, verbose=False)
        options = {"sampler": asked.sampler, "steps": asked.steps, "tile": asked.tile}
        enlarger = Enlarger.load(asked.weights, asked.device, **options)
        gallery = Gallery(_gallery_path(asked.gallery, waiting[0], asked.output)) if asked.gallery is not None else None
        run = Run(enlarger, size, form, asked.quality, asked.colours, asked.overwrite, failures, gallery)
        written = run.all(waiting)
        if gallery is not None and gallery.pictures:
            gallery.write()
            print(gallery.path)

    parts = [f"{written} photograph{'' if written == 1 else 's'} enlarged"]
    parts += [f"{skipped} skipped, whose files exist"] if skipped else []
    parts += [f"{len(failures)} failed"] if failures else []
    print(", ".join(parts), flush=True)
    if failures:
        listed = "\n".join(f"  {reason}" for reason in failures.values())
        print(f"error: not enlarged:\n{listed}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning enlarge",
        description="Enlarges photographs: files, folders, shell patterns. Colour profile, EXIF, IPTC, XMP, "
        "transparency, 16 bits and grey are kept where the format of the result can hold them. Photographs of any size "
        "are enlarged in bounded memory.",
    )
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="a file, a folder, or a pattern such as 'trip/*.jpg'"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="enlarged",
        metavar="OUT",
        help="a file such as large.jpg, or a folder (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        "--ckpt",
        default=ENLARGER,
        metavar="NAME_OR_PATH",
        help="the name of weights, or a checkpoint (default: %(default)s)",
    )

    sizes = parser.add_argument_group("size (default: the model's scale; the sides keep their ratio)")
    sizes.add_argument("--scale", type=float, metavar="N", help="how many times longer each side becomes: 2, 3, 4, ...")
    sizes.add_argument("--size", metavar="WxH", help="as large as fits into a box, such as 3840x2160")
    sizes.add_argument("--width", type=int, metavar="PIXELS")
    sizes.add_argument("--height", type=int, metavar="PIXELS")

    files = parser.add_argument_group("results")
    files.add_argument("--format", choices=[*FORMATS], help="default: that of OUT's name, or png")
    files.add_argument("--quality", type=int, default=QUALITY, metavar="1-100", help="of jpg and webp (default: 95)")
    files.add_argument(
        "--colours",
        choices=["source", "srgb"],
        default="source",
        help="in the photograph's own colour profile, or in sRGB (default: %(default)s)",
    )
    files.add_argument("--skip_existing", action="store_true", help="leave photographs whose results exist")
    files.add_argument("--overwrite", action="store_true", help="replace results that exist")
    files.add_argument(
        "--gallery",
        nargs="?",
        const="",
        metavar="HTML",
        help=f"also write a page that shows before and after (default name: {GALLERY}, beside the results)",
    )

    model = parser.add_argument_group("model")
    known = ", ".join(sorted(path.stem for path in SAMPLERS.glob("*.yaml")))
    model.add_argument("--sampler", metavar="NAME", help=f"instead of the model's own: {known}")
    model.add_argument("--steps", type=int, metavar="N", help="of the sampler: fewer are faster")
    model.add_argument("--seed", type=int, default=0, help="another seed draws other detail (default: %(default)s)")
    model.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU where there is one)")
    model.add_argument(
        "--tile",
        type=int,
        default=TILE,
        metavar="PIXELS",
        help="larger results are computed in overlapping parts of this size; smaller ones need less memory "
        "(default: %(default)s)",
    )
    return parser


def _size(asked: argparse.Namespace) -> Size:
    if asked.size is None:
        return Size(asked.scale, asked.width, asked.height)
    if (asked.scale, asked.width, asked.height) != (None, None, None):
        raise ValueError("--size is given with --scale, --width or --height; give one of them")
    return Size.parse(asked.size)


def _not_in_the_way(jobs: Sequence[Job], failures: dict[str, str], *, skip: bool, overwrite: bool) -> Iterator[Job]:
    """The jobs whose results do not exist yet or may be replaced; the others are skipped or failures."""
    photographs = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target.resolve() in photographs and not skip:
            failures[job.key] = f"{job.target}: is one of the photographs; give another folder or name for the results"
        elif overwrite or not job.target.exists():
            yield job
        elif not skip:
            failures[job.key] = exists_message(job.target)


def _gallery_path(asked: str, first: Job, output: str) -> Path:
    if asked:
        return Path(asked).expanduser()
    target = Path(output).expanduser()
    return (first.target.parent if target == first.target else target) / GALLERY


@dataclass
class Run:
    """Enlarges photographs one after another, small ones of one size together, and writes each as soon as it is done.

    Attributes:
        enlarger: The model.
        size: What size was asked for.
        form: The format of the results.
        quality: See `write_photograph`.
        colours: See `write_photograph`.
        overwrite: See `write_photograph`.
        failures: What could not be enlarged, and why; is added to.
        gallery: Is shown each result.
    """

    enlarger: Enlarger
    size: Size
    form: str
    quality: int
    colours: str
    overwrite: bool
    failures: dict[str, str]
    gallery: Gallery | None

    def all(self, jobs: Sequence[Job]) -> int:
        """Enlarges all; returns how many results were written."""
        plan = self._plan(jobs)
        parts = self.enlarger.parts
        if plan.work > 2 * (parts.side * parts.scale) ** 2:
            _log.info("a tile is timed ...")
            _log.info("%s", estimate(plan, timed_tile(self.enlarger)))

        written = 0
        with Bar(plan.work).open() as bar:
            for group in self._groups(jobs):
                keys = [job.key for job, _ in group]
                bar.show(keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more")
                try:
                    made = self.enlarger.photographs(
                        [photograph for _, photograph in group], keys, self.size, bar.advance
                    )
                except (UnusableImage, ValueError, MemoryError) as error:
                    reason = str(error) or f"{', '.join(keys)}: does not fit the memory"
                    self.failures |= dict.fromkeys(keys, reason)
                    _log.error("%s", reason)
                    continue
                for (job, before), after in zip(group, made, strict=True):
                    bar.show(f"writing {job.target.name}")
                    written += self._written(job, before, after)
        return written

    def _plan(self, jobs: Sequence[Job]) -> Plan:
        """What is to be done, by the headers of the files; those that cannot be read are left for later."""
        before = after = work = memory = 0
        for job in jobs:
            try:
                width, height = image_size(job.source)
                target = self.size.of(width, height, self.enlarger.scale)
                count = passes((width, height), target, self.enlarger.scale)
            except (ImageError, ValueError, OSError):
                continue
            before, after = before + width * height, after + target[0] * target[1]
            work += sum(
                self.enlarger.parts.work(height * self.enlarger.scale**number, width * self.enlarger.scale**number)
                for number in range(count)
            )
            drawn = max(width * height * self.enlarger.scale ** (2 * count), target[0] * target[1])
            depth = stored_depth(job.source)
            held = drawn * bytes_to_write(self.form, depth) + width * height * READING[depth]
            memory = max(memory, held + self.enlarger.parts.rows(width * self.enlarger.scale ** max(count - 1, 0)))
        return Plan(len(jobs), before, after, work, memory)

    def _groups(self, jobs: Sequence[Job]) -> Iterator[list[tuple[Job, Photograph]]]:
        """Photographs that are enlarged together: those of one size and depth, as many as fit."""
        pending: dict[object, list[tuple[Job, Photograph]]] = defaultdict(list)
        waiting = 0
        for job in jobs:
            photograph = self._read(job)
            if photograph is None:
                continue
            width, height = photograph.size
            together = self.enlarger.parts.fits(height, width)
            if together < 2:
                yield [(job, photograph)]
                continue

            group = pending[photograph.size, photograph.depth]
            group.append((job, photograph))
            waiting += width * height * self.enlarger.scale**2
            if len(group) == together:
                yield pending.pop((photograph.size, photograph.depth))
                waiting -= len(group) * width * height * self.enlarger.scale**2
            elif waiting > WAITING:
                yield from pending.values()
                pending.clear()
                waiting = 0
        yield from pending.values()

    def _read(self, job: Job) -> Photograph | None:
        """A photograph whose result can be written; None, with a failure, for others."""
        try:
            photograph = read_photograph(job.source, str(job.source))
            target = self.size.of(*photograph.size, self.enlarger.scale)
            check_size(job.key, target, self.form)
            said = story(photograph.size, target, self.enlarger.scale)
        except (ImageError, ValueError) as error:
            self.failures[job.key] = str(error)
            _log.error("%s", error)
            return None
        if said:
            _log.info("%s: %s", job.source, said)
        return photograph

    def _written(self, job: Job, before: Photograph, after: Photograph) -> bool:
        try:
            write_photograph(
                after,
                job.target,
                form=self.form,
                quality=self.quality,
                colours="srgb" if self.colours == "srgb" else "source",
                overwrite=self.overwrite,
            )
        except (FileExistsError, ValueError) as error:  # a full disk ends the run
            self.failures[job.key] = str(error)
            _log.error("%s", error)
            return False
        if self.gallery is not None:
            self.gallery.add(job.key, before, after, job.target)
        return True
