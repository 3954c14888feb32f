"""What a benchmark found: numbers with their unit and what they were compared against, printed and written as JSON."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pag_core.compute.device import described_processor, processor_name
from pag_core.compute.processes import usable_cores
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.provenance import versions

TIMES_AS_FAST = "times as fast"
OUTPUT = "--output"  # where results lie is no part of how they were made


@dataclass(frozen=True)
class Measurement:
    """One number. With the unit "times as fast", above 1 means faster than `compared_against`.

    `spread` is the lowest and highest of the rounds, where there are several, whose median `value` is. `value` is None
    where it could not be measured, and `not_measured` says why.
    """

    value: float | None
    unit: str
    compared_against: str | None
    spread: tuple[float, float] | None = None
    not_measured: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != (self.not_measured is not None):
            raise ValueError(f"a measurement has a value or a reason for having none, not {self}")

    def as_json(self) -> dict[str, Any]:
        """The measurement as it is written: `spread` and `not_measured` only where there is one."""
        content: dict[str, Any] = {
            "value": self.value, "unit": self.unit, "compared_against": self.compared_against,
        }  # fmt: skip
        if self.spread is not None:
            content["spread"] = list(self.spread)
        if self.not_measured is not None:
            content["not_measured"] = self.not_measured
        return content

    def __str__(self) -> str:
        against = f"; against {self.compared_against}" if self.compared_against else ""
        if self.value is None:
            return f"not measured: {self.not_measured}{against}"
        spread = f" ({self.spread[0]:.4g} to {self.spread[1]:.4g})" if self.spread else ""
        return f"{self.value:.4g} {self.unit}{spread}{against}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def processor_flags() -> set[str]:
    """Instruction sets that the operating system names; empty where it does not (no /proc/cpuinfo)."""
    return set(described_processor("flags", "Features").split())


def header(command: str, device: str) -> dict[str, Any]:
    """Versions, hardware, date (UTC) and command of a run; no host name and no path."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    hardware: dict[str, Any] = {"processor": processor_name(), "cores": usable_cores(), "memory_GiB": round(memory, 1)}
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return {
        "versions": versions(),
        "hardware": hardware,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def report(
    subject: str, measurements: dict[str, Measurement], output: Path | None, *, device: str, arguments: Sequence[str]
) -> None:
    """Print the measurements of `subject`, and write them with a header to `output` unless it is None."""
    for name, measurement in measurements.items():
        print(f"{subject}.{name}: {measurement}", flush=True)
    if output is not None:
        kept = [
            argument
            for argument, before in zip(arguments, ["", *arguments], strict=False)
            if OUTPUT not in (argument, before)
        ]
        command = " ".join([f"python -m benchmarks.{subject}", *kept])
        named = {f"{subject}.{name}": measurement.as_json() for name, measurement in measurements.items()}
        write_json(output, {"header": header(command, device), "measurements": named})
