"""One evaluation of the network: on whole states, tile by tile, or on windows of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.tiling import Slices, Tiles, cut, tiled, windows

Evaluate = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""From states `[B,C,h,w]`, their labels `[B]` and what is shown beside them to what the network writes, `[B,C,h,w]`."""

Wanted = Callable[[Slices], bool]
"""Whether anything of a part of the state is needed."""


@dataclass(frozen=True)
class Window:
    """A part of one image that the network is shown, and the part of it whose output is kept.

    Attributes:
        image: Index in the batch.
        shown: Rows and columns of the state.
        kept: Rows and columns of the state, inside of `shown`.
    """

    image: int
    shown: Slices
    kept: Slices

    @property
    def inner(self) -> Slices:
        """`kept` as rows and columns of the window itself."""
        (rows, columns), (top, left) = self.kept, (side.start for side in self.shown)
        return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


def area(part: Slices) -> int:
    """Pixels of a part of a state."""
    rows, columns = part
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def everything(x: Tensor) -> Slices:
    """The whole of states `[B,C,h,w]`."""
    return slice(0, x.shape[-2]), slice(0, x.shape[-1])


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the network that is about to be made.

    Attributes:
        network: The network, for its statistics.
        evaluate: Calls it.
        x: What it reads, `[B,C,h,w]`.
        label: What tells it the time, `[B]`, on the device of `x`.
        condition: What it is shown beside the state, by name; each `[B,...]`.
        tiles: How a state is cut where it is evaluated whole; None: not at all.
    """

    network: nn.Module
    evaluate: Evaluate
    x: Tensor
    label: Tensor
    condition: Mapping[str, Tensor]
    tiles: Tiles | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a state."""
        return self.x.shape[-2], self.x.shape[-1]

    def whole(self, wanted: Wanted | None = None) -> Tensor:
        """What the network writes, `[B,C,h,w]`; tiles that are not wanted are left out, and undefined."""
        if self.tiles is None:
            return self.evaluate(self.x, self.label, self.condition)

        def on_tile(x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
            return self.evaluate(x, self.label, condition)

        return tiled(on_tile, self.x, self.condition, self.tiles, wanted)

    def parts(self, wanted: Wanted) -> list[Slices]:
        """What `whole` evaluates one after the other."""
        if self.tiles is None or max(self.size) <= self.tiles.side:
            return [everything(self.x)]
        return [part for part in windows(*self.size, self.tiles) if wanted(part)]

    def on(self, together: Sequence[Window]) -> Tensor:
        """What the network writes on windows of one size, `[n,C,h',w']`."""
        images = torch.tensor([window.image for window in together], device=self.label.device)
        shown = {name: self._cut(name, value, together) for name, value in self.condition.items()}
        return self.evaluate(self._cut("state", self.x, together), self.label[images], shown)

    def _cut(self, name: str, value: Tensor, together: Sequence[Window]) -> Tensor:
        height = self.x.shape[-2]
        return torch.cat([cut(name, value[window.image, None], window.shown, height) for window in together])

    def select(self, rows: Tensor) -> Self:
        """The evaluation of the samples at `rows`, indices `[b]`."""
        condition = {name: value[rows] for name, value in self.condition.items()}
        return replace(self, x=self.x[rows], label=self.label[rows], condition=condition)
