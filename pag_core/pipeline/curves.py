"""Training curves, one value per epoch, through DVCLive: `dvc plots`, the VS Code extension and the page read them."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

VALIDATION = "validation_"  # begins the names of curves on validation images


class Curves:
    """Writes `FOLDER/plots/metrics/NAME.tsv`; a resumed run replays its history first, so no row is lost or doubled.

    On a machine without DVC (stages run by hand) the same files are written without DVCLive, with a message.
    """

    def __init__(self, folder: Path, history: list[dict[str, float]]) -> None:
        self.folder = folder
        self.live: Any = None
        if importlib.util.find_spec("dvclive") is None:
            print(f"dvclive is not installed: the curves in {folder} are written without it", flush=True)
            for stale in folder.glob("plots/metrics/*.tsv"):
                stale.unlink()
        else:
            from dvclive import Live

            # the stage belongs to an experiment already; DVCLive must neither save one nor write a dvc.yaml
            self.live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)
        for values in history:
            self.log(values)

    def log(self, values: dict[str, float]) -> None:
        """Add one row to each curve; `values` holds `step` and a value per curve."""
        step = int(values["step"])
        if self.live is not None:
            self.live.step = step
        for name, value in values.items():
            if name == "step":
                continue
            if self.live is not None:
                self.live.log_metric(name, value, timestamp=False)
            else:
                self._append(name, step, value)

    def _append(self, name: str, step: int, value: float) -> None:
        path = self.folder / "plots" / "metrics" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            if new:
                writer.writerow(["step", name])
            writer.writerow([step, value])

    def close(self) -> None:
        """Finish the curves."""
        if self.live is not None:
            self.live.end()


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve of a folder that `Curves` wrote: name to (step, value) pairs."""
    curves = {}
    for path in sorted(folder.glob("plots/metrics/[!.]*.tsv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        curves[path.stem] = [(int(row["step"]), float(row[path.stem])) for row in rows]
    return curves
