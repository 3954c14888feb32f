"""The table of the page as text for a terminal: the columns that the page shows at first."""

from experiments.overview.page import Column, Listed, table
from pag_core.pipeline.paths import METRICS

GAP = "-"


def as_text(experiments: list[Listed]) -> str:
    """A line for each experiment, below the group and the title of each column, a word of it a line."""
    columns, rows = table(experiments)
    shown = [place for place, column in enumerate(columns) if column.shown]
    titles = [columns[place].title.split() for place in shown]
    high = max(map(len, titles))
    cells = [
        [*[""] * (high - len(title)), *title, *(_shown(row[place], columns[place]) for row in rows)]
        for place, title in zip(shown, titles, strict=True)
    ]
    widths = [max(map(len, cell)) for cell in cells]
    groups, before, start = "", "", 0
    for place, width in zip(shown, widths, strict=True):
        if (group := columns[place].group.removeprefix(f"{METRICS}/")) != before:
            # one that is longer than its columns moves the next
            groups = f"{groups:<{start}}{' ' * bool(groups.strip() and len(groups) >= start)}{group}"
        before, start = group, start + width + 2
    lines = [
        "  ".join(
            f"{text:{'>' if number else '<'}{width}}"
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip(*cells, strict=True)
    ]
    return "\n".join(line.rstrip() for line in [groups, *lines]) + "\n"


def _shown(value: str | float | None, column: Column) -> str:
    if value is None:
        return GAP
    if isinstance(value, str) or column.decimals is None:
        # 2.0 as the page has it
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return f"{value:.{column.decimals}f}"
