"""An archive that a dataset's publisher offers: downloaded once, and read only if its size and MD5 are those published."""

import contextlib
import functools
import hashlib
import os
import tarfile
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from io import BufferedReader
from pathlib import Path

from pag_core.errors import DatasetError
from pag_core.pipeline.artifacts import replacing_file
from pag_core.pipeline.locks import holding
from pag_core.pipeline.loop import progress_bar

BYTES_AT_ONCE = 2**20
SECONDS_WITHOUT_ANSWER = 60
# nobody can make another file of a given MD5, though two of equal MD5 can be made
_md5 = functools.partial(hashlib.md5, usedforsecurity=False)


@dataclass(frozen=True)
class PublishedArchive:
    """What `dataset` (its name for people) is published as: address of the file, size in bytes, MD5 (hexadecimal)."""

    dataset: str
    address: str
    size: int
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.address.rsplit("/", 1)[1]

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[BufferedReader]:
        """The verified archive in `folder`, open at its start; downloaded first unless a file of its name is there.

        The file that is yielded is the one that was verified, whatever happens to its name meanwhile.
        Raises DatasetError, which says what to put where, if it cannot be downloaded or is another file.
        """
        path = folder / self.name
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # of several experiments at once one downloads
            with holding(folder / f".{self.name}.lock", f"downloading {self.name}"):
                if not path.exists():
                    self._download(path)
        with path.open("rb") as file:
            if fault := self._fault(file):
                raise DatasetError(
                    f"{path} {fault}; remove it, then run again to download it, or {self._remedy(folder)}"
                )
            file.seek(0)
            yield file

    def _download(self, path: Path) -> None:
        with replacing_file(path) as partial:
            with partial.open("wb") as out, progress_bar(f"download of {self.name}", self.size, 0, "B") as bar:
                bar.unit_scale = True
                for chunk in self._received(path.parent):
                    out.write(chunk)
                    bar.update(len(chunk))
            with partial.open("rb") as file:
                if fault := self._fault(file):
                    raise DatasetError(f"what {self.address} sent {fault}; try again, or {self._remedy(path.parent)}")

    def _received(self, folder: Path) -> Iterator[bytes]:
        """What the address sends, chunk by chunk, though little more than there should be."""
        received = 0
        try:
            with urllib.request.urlopen(self.address, timeout=SECONDS_WITHOUT_ANSWER) as response:
                while received <= self.size and (chunk := response.read(BYTES_AT_ONCE)):
                    received += len(chunk)
                    yield chunk
        except (OSError, HTTPException) as error:
            raise DatasetError(
                f"{self.dataset} could not be downloaded from {self.address} ({error}); {self._remedy(folder)}"
            ) from error

    def _fault(self, file: BufferedReader) -> str | None:
        """What makes `file` another one than was published."""
        size = os.fstat(file.fileno()).st_size
        if size != self.size:
            return f"has {size:,} bytes, not {self.size:,}"
        found = hashlib.file_digest(file, _md5).hexdigest()
        return None if found == self.md5 else f"has the MD5 {found}, not {self.md5}"

    def _remedy(self, folder: Path) -> str:
        return (
            f"put {self.name} ({self.size:,} bytes, MD5 {self.md5}) into {folder}, or use dataset: image_folder with "
            "images of your own"
        )


def tar_members(archive: BufferedReader, names: Collection[str]) -> dict[str, bytes]:
    """The content of the regular files `names` in a .tar.gz, by name, read in one pass and into memory alone.

    No path of the archive is ever opened, and a link is no regular file. Raises DatasetError if one is missing.
    """
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=archive, mode="r|gz") as members:
        for member in members:
            name = member.name.removeprefix("./")
            if name in names and member.isreg() and (content := members.extractfile(member)):
                found[name] = content.read()
                if len(found) == len(names):
                    return found
    raise DatasetError(f"{archive.name} lacks the file {min(set(names) - found.keys())}")
