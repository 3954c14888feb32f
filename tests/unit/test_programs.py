"""Programs that a command runs: their exit code, the Python they find, and signals to the command."""

import os
import signal
import sys
import threading

import pytest

from experiments.programs import run_program

pytestmark = pytest.mark.slow

WAITS = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1])))
Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def when_ready(tmp_path):
    """`when_ready(number)`: send this process a signal once the program waits."""

    def start(number):
        def send():
            while not (tmp_path / "ready").exists():
                pass
            os.kill(os.getpid(), number)

        threading.Thread(target=send, daemon=True).start()

    return start


def test_an_exit_code_and_what_is_found_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    program = f"import sys, os; sys.exit(7 if sys.prefix == {sys.prefix!r} and os.environ['PLACE'] == 'here' else 1)"
    assert run_program(["env", "python", "-c", program], tmp_path, PLACE="here") == 7
    assert run_program([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path) == 137


@pytest.mark.parametrize(("own", "code"), [(143, 143), (0, 143), (5, 5)])
def test_sigterm_is_handed_on(tmp_path, when_ready, own, code):
    before = signal.getsignal(signal.SIGTERM)
    when_ready(signal.SIGTERM)
    assert run_program([sys.executable, "-c", WAITS, str(own)], tmp_path) == code
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_waits_for_the_program(tmp_path, when_ready):
    """Which the terminal tells as well; here it ends by itself."""
    when_ready(signal.SIGINT)
    assert run_program([sys.executable, "-c", WAITS.replace("60", "1"), "0"], tmp_path) == 130
