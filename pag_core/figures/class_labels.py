"""What a figure calls its classes: their names, or numbers that a legend explains where names cannot be told apart."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pag_core.figures.fonts import INVISIBLE, escaped
from pag_core.figures.palette import short_name, wrapped

# inches: of a character of the legend, and of a line
CHARACTER = 0.08
LINE = 0.16


@dataclass(frozen=True)
class ClassLabels:
    """`names` are what is written, by class; a class of `numbered` is called `class 3`, and `legend` has its name."""

    names: dict[int, str]
    numbered: frozenset[int]
    legend: str

    @property
    def texts(self) -> list[str]:
        """All that is written, for `palette.style`."""
        return [*self.names.values(), self.legend]

    def caption(self, label: int) -> str:
        """What is written below an image of the class."""
        return self.names[label] if label in self.numbered else f"class {short_name(self.names[label])}"

    def legend_lines(self, width: float) -> list[str]:
        """The legend in lines of at most `width` inches; none where nothing is to be explained."""
        return wrapped(self.legend, int(width / CHARACTER))


def class_labels(class_names: Sequence[str], labels: Iterable[int]) -> ClassLabels:
    """How a figure calls the classes `labels`.

    A class gets a number if no installed font draws its name, if part of that cannot be seen, or if another name looks alike
    where both are cut; all classes get numbers if one of them is called like the number of another.
    """
    names = {label: class_names[label] for label in sorted(set(labels))}
    cut = {label: short_name(_seen(name)) for label, name in names.items()}
    alike = Counter(cut.values())
    numbered = {label for label, name in names.items() if escaped(name) != name or alike[cut[label]] > 1}
    if {_number(label) for label in numbered} & {name for label, name in names.items() if label not in numbered}:
        numbered = set(names)
    return ClassLabels(
        {label: _number(label) if label in numbered else name for label, name in names.items()},
        frozenset(numbered),
        # a number and its name in one line, if that is long enough
        "; ".join(
            f"class\N{NO-BREAK SPACE}{label}:\N{NO-BREAK SPACE}{escaped(names[label])}" for label in sorted(numbered)
        ),
    )


def _number(label: int) -> str:
    return f"class {label}"


def _seen(name: str) -> str:
    return " ".join("".join(one for one in name if one not in INVISIBLE).split())
