"""How models of several kinds look in one plot: a colour for each source, a marker for each method, a fill for each network."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from matplotlib.lines import Line2D

from pag_core.figures.labels import CONTROLS, METHODS, norm_label, source_label
from pag_core.gradients.sources import SOURCES
from pag_core.params.values import Control, MethodName, Source

Fill = Literal["full", "none", "left", "right", "top", "bottom"]
FILLS: tuple[Fill, ...] = ("full", "none", "left", "right", "top", "bottom")
MARKER_SIZE = 8


@dataclass(frozen=True)
class Kind:
    """What a model was trained with: `source` is none where nothing is aligned; `norm` is that of AT, else empty."""

    source: Source
    method: MethodName
    norm: str
    arch: str
    control: Control | None = None

    @property
    def label(self) -> str:
        """Its method and source, such as `vanilla`, `SBG`, `AT L₂ + SBG`."""
        parts = [] if self.method == "standard" else [METHODS[self.method].title]
        if self.norm:
            parts = [f"{parts[0]} {norm_label(self.norm)}"]
        if self.source != "none":
            parts.append(source_label(self.source, self.control))
        return " + ".join(parts) or "vanilla"

    @property
    def colour(self) -> str:
        """That of its source."""
        return SOURCES[self.source].colour

    @property
    def marker(self) -> str:
        """That of its method, or of a control of what it is aligned with."""
        return METHODS[self.method].markers[self.norm] if self.control is None else CONTROLS[self.control].marker

    @property
    def meets_neither(self) -> bool:
        """Whether it was trained neither with score-based gradients nor with attacked images (AT, TRADES)."""
        return not self.source.startswith("sbg") and self.method not in ("at", "trades")


def fills(kinds: Iterable[Kind]) -> dict[str, Fill]:
    """The fill of each architecture's markers, in the order in which they come."""
    archs = dict.fromkeys(kind.arch for kind in kinds)
    return {arch: FILLS[number % len(FILLS)] for number, arch in enumerate(archs)}


def legend_marks(kinds: Iterable[Kind]) -> list[Line2D]:
    """A legend's entry for each kind, which names the architecture too where there are several."""
    different = list(dict.fromkeys(kinds))
    filled = fills(different)
    return [
        Line2D(
            [], [], color=kind.colour, linestyle="", marker=kind.marker, markersize=MARKER_SIZE, fillstyle=filled[kind.arch],
            label=kind.label if len(filled) == 1 else f"{kind.label}, {kind.arch}",
        )
        for kind in different
    ]  # fmt: skip
