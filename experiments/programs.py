"""Programs that a command runs one after the other, and that end in their own way when the command is asked to end."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType


def run_program(command: Sequence[str], folder: Path, **environment: str) -> int:
    """Run a program in `folder` to its end, with variables added to its environment; returns its exit code.

    It finds this Python by the name python. Ctrl-C is left to it, which the terminal tells too, and SIGTERM is handed on:
    a stage saves a checkpoint then. The code is that of the signal also if the program ended as if there had been none.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PATH": path, **environment})
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # of signals as shells have it
    return 128 - code if code < 0 else code or (128 + received[0] if received else 0)
