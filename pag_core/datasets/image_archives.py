"""A split of an image folder as an archive: train.tar.* of train/CLASS/IMAGE, and test.tar.* likewise."""

import lzma
import tarfile
import zlib
from pathlib import Path

from pag_core.datasets.image_files import composed, is_hidden, require_one_spelling
from pag_core.errors import DatasetError


def unpack(archive: Path, folder: Path, classes: tuple[str, ...] | None) -> None:
    """Write the images of `classes` (None: all) as CLASS/IMAGE into `folder`, and the files beside the class folders.

    Hidden files are left out. Raises DatasetError for an archive that is damaged, cut off or holds no class, for a link to
    nothing in it, and for two folders of one name.
    """
    spellings: dict[str, str] = {}
    root = archive.name.split(".tar")[0]
    try:
        # file by file: extractall has its guard against paths that lead outside only since Python 3.11.4
        with tarfile.open(archive) as file:
            for member in file:
                top, *parts = Path(member.name).parts or ("",)
                if top != root or not parts or ".." in parts or member.isdir() or any(map(is_hidden, parts)):
                    continue
                if len(parts) > 1:
                    parts[0], spelt = composed(parts[0]), parts[0]
                    require_one_spelling(archive, parts[0], spellings.setdefault(parts[0], spelt), spelt)
                    if classes is not None and parts[0] not in classes:
                        continue
                copy = folder.joinpath(*parts)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(_content_of(file, member, archive))
            _require_end(file)
    except (EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, OSError) as error:
        # of the system, such as a full disk; damage has no number
        if getattr(error, "errno", None) is not None:
            raise
        raise DatasetError(
            f"{archive} cannot be read to its end ({error}); it is cut off, damaged or no archive: copy or download it again"
        ) from None
    if not spellings:
        raise DatasetError(f"{archive} holds no {root}/CLASS/IMAGE")


def _content_of(file: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> bytes:
    """The bytes of a member, or of the one that it is a link to; raises DatasetError where there are none."""
    try:
        source = file.extractfile(member)
    except (KeyError, RecursionError):
        source = None
    if source is None:
        link = f"a link to {member.linkname}, and the archive holds no such file"
        raise DatasetError(
            f"{archive}: {member.name} is {link if member.linkname else 'no file'}; make the archive anew without it"
        )
    return source.read()


def _require_end(file: tarfile.TarFile) -> None:
    """Raise ReadError unless nothing but zeros follows the last member, where tarfile takes a damaged member for the end."""
    assert file.fileobj is not None
    # what a link leads to was read from further up
    if file.fileobj.tell() < file.offset:
        file.fileobj.seek(file.offset)
    # to the very end, where compressed archives have their checksum
    while block := file.fileobj.read(2**20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("what follows a member is neither a member nor the end")
