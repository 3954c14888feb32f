"""Mends .venv after its folder was moved or copied: what is written in it names the old place. `make` runs it.

    .venv/bin/python environment.py

Commands such as dvc begin with the path of their Python, and bin/activate has the path of the environment. Both are written
anew, and nothing is downloaded.
"""

import re
import sys
import venv
from pathlib import Path

# how a command names its Python: in one line, or handed on by a shell where the path is long or has a blank
HEADER = re.compile(rb"\A#!(/bin/sh\n'''exec' [^\n]*python[^\n]*\n' '''|[^\n]*python[^\n]*)\n")


def main() -> None:
    """Mend the environment of the Python that runs this, unless it is where it was made."""
    place = Path(sys.prefix)
    settings = (place / "pyvenv.cfg").read_text(encoding="utf-8")
    made = re.search(r"^command = .* -m venv (?:--\S+ )*(.+)$", settings, re.MULTILINE)
    # a folder may have several names, of links to it
    if made is None or (Path(made[1]).exists() and Path(made[1]).samefile(place)):
        return
    print(f"{place.name} was at {made[1]}; its commands are written anew", flush=True)
    for command in (place / "bin").iterdir():
        content = b"" if command.is_symlink() or not command.is_file() else command.read_bytes()
        if HEADER.match(content):
            python = str(place / "bin/python").encode()
            header = b"#!/bin/sh\n'''exec' \"" + python + b'" "$0" "$@"\n\' \'\'\'\n'
            command.write_bytes(header + HEADER.sub(b"", content))
    # last: it names the new place, by which this is known to be done
    venv.create(place, symlinks=True, with_pip=False)


if __name__ == "__main__":
    main()
