"""How models of several kinds look in one plot: a colour for each source, a marker for each method, a fill for each network."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from matplotlib.lines import Line2D

from pag_core.evaluation.attacks import norm_label
from pag_core.figures.labels import CONTROLS, METHODS, source_label
from pag_core.gradients.sources import known_as
from pag_core.params.values import Control, MethodName

Fill = Literal["full", "none", "left", "right", "top", "bottom"]
FILLS: tuple[Fill, ...] = ("full", "none", "left", "right", "top", "bottom")
MARKER_SIZE = 8


@dataclass(frozen=True)
class Kind:
    """What a model was trained with; `norm` and `radius` are AT's, else empty.

    `source` is none where nothing is aligned, and the function where it is the user's.
    """

    source: str
    method: MethodName
    norm: str
    arch: str
    control: Control | None = None
    radius: str = ""

    @property
    def label(self) -> str:
        """Its method and source, such as `vanilla`, `SBG`, `AT L₂ + SBG`."""
        return self._named(norm_label(self.norm) if self.norm else "")

    @property
    def full_label(self) -> str:
        """The same with the radius of AT: `AT L₂ 0.5 + SBG`."""
        return self._named(f"{norm_label(self.norm)} {self.radius}" if self.norm else "")

    def _named(self, attack: str) -> str:
        parts = [] if self.method == "standard" else [METHODS[self.method].title]
        if attack:
            parts = [f"{parts[0]} {attack}"]
        if self.source != "none":
            parts.append(source_label(self.source, self.control))
        return " + ".join(parts) or "vanilla"

    @property
    def colour(self) -> str:
        """That of its source."""
        return known_as(self.source).colour

    @property
    def marker(self) -> str:
        """That of its method, or of a control of what it is aligned with."""
        return METHODS[self.method].markers[self.norm] if self.control is None else CONTROLS[self.control].marker

    @property
    def meets_neither(self) -> bool:
        """Whether it was trained neither with score-based gradients nor with attacked images (AT, TRADES)."""
        return not self.source.startswith("sbg") and self.method not in ("at", "trades")


def fills(kinds: Iterable[Kind]) -> dict[Kind, Fill]:
    """The fill of each kind's marker: of its architecture, and of its radius among those of AT in its norm, as they come."""
    different = list(dict.fromkeys(kinds))
    archs, radii = _archs(different), _radii(different)
    places = {
        kind: archs.index(kind.arch) * len(radii[kind.norm]) + radii[kind.norm].index(kind.radius) for kind in different
    }
    return {kind: FILLS[place % len(FILLS)] for kind, place in places.items()}


def legend_marks(kinds: Iterable[Kind]) -> list[Line2D]:
    """A legend's entry for each kind, which names the architecture and the radius of AT where there are several."""
    different = list(dict.fromkeys(kinds))
    filled, archs, radii = fills(different), _archs(different), _radii(different)
    labels = {kind: kind.label if len(radii[kind.norm]) == 1 else kind.full_label for kind in different}
    return [
        Line2D(
            [], [], color=kind.colour, linestyle="", marker=kind.marker, markersize=MARKER_SIZE, fillstyle=filled[kind],
            label=labels[kind] if len(archs) == 1 else f"{labels[kind]}, {kind.arch}",
        )
        for kind in different
    ]  # fmt: skip


def _archs(kinds: list[Kind]) -> list[str]:
    return list(dict.fromkeys(kind.arch for kind in kinds))


def _radii(kinds: list[Kind]) -> dict[str, list[str]]:
    """The radii of AT by its norm; one empty one where there is no AT."""
    return {
        norm: list(dict.fromkeys(kind.radius for kind in kinds if kind.norm == norm))
        for norm in {kind.norm for kind in kinds}
    }
