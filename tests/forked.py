"""Python programs as forks of one process that has imported what most of them need: alone each pays seconds for that.

    python tests/forked.py

makes a folder with a `python`, prints its path, and removes it when its own standard input closes. That `python` runs a
program, or -m MODULE, in the caller's folder, environment and standard streams, and ends with its exit code. Signals do not
reach the program, and what an interpreter does at its start (options, PYTHONPATH, sitecustomize) is left out: what is tested
of these needs a Python of its own, as does what a program imports.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import shutil
import socket
import sys
import tempfile
import warnings
from pathlib import Path

# of the stages and of DVC; never the project, which a program imports from where it lies
LIBRARIES = (
    "torch", "guided_diffusion.unet", "zarr", "pyautoattack.autoattack", "foolbox.attacks", "scipy.stats",
    "sklearn.datasets", "typer.rich_utils", "dvclive", "pydantic", "ruamel.yaml", "safetensors.torch", "matplotlib.figure",
    "jinja2", "dvc.repo", "dvc.cli.parser",
)  # fmt: skip
CALLER = """
import json, os, socket, sys
caller = socket.socket(socket.AF_UNIX)
caller.connect({address!r})
said = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(caller, [len(said).to_bytes(8, "big")], [0, 1, 2])
caller.sendall(said)
code = int(caller.recv(8) or 1)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def serve() -> None:
    """Fork until standard input closes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            importlib.import_module(name)
    gc.freeze()  # else a fork's first collections go through, and so copy, all of it
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    address = str(folder / "socket")
    listener = socket.create_server(address, family=socket.AF_UNIX)
    call = shlex.join([sys.executable, "-ISE", "-c", CALLER.format(address=address)])
    (folder / "python").write_text(f'#!/bin/sh\nexec {call} "$@"\n', encoding="utf-8")
    (folder / "python").chmod(0o755)
    print(folder, flush=True)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(sys.stdin, selectors.EVENT_READ)
    answering: list[int] = []
    while all(key.fileobj is listener for key, _ in waiting.select()):
        caller, _ = listener.accept()
        if not (fork := os.fork()):
            waiting.close()
            listener.close()
            return answer(caller)
        caller.close()
        answering = [number for number in (*answering, fork) if not os.waitpid(number, os.WNOHANG)[0]]
    shutil.rmtree(folder)


def answer(caller: socket.socket) -> None:
    """In a fork: run what `caller` asks for in another, and tell its exit code."""
    size, streams, *_ = socket.recv_fds(caller, 8, 3)
    with caller.makefile("rb") as said:
        arguments, place, environment = json.loads(said.read(int.from_bytes(size, "big")))
    if program := os.fork():
        for stream in streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        caller.sendall(str(code).encode())
        os._exit(0)
    caller.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.argv[:], sys.path[0] = arguments[1:], place
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:], sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve()
