"""Which files of an image folder are images, in which order they are read, and what lies beside them that is none."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import PIL
from PIL import Image

from pag_core.compute.processes import this_process
from pag_core.errors import DatasetError

# what systems leave beside files of the user's, in archives too, under names that do not begin with a dot
LEFT_BY_SYSTEMS = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini")
# formats whose files Pillow only writes, or only recognises
NOT_DECODED = ("BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF")
# pictures also where the Pillow at hand was built without what decodes them
PICTURES = (".avif", ".heic", ".heif", ".jxl", ".webp")
# what may stand for a test split that is not there
VALIDATION_NAMES = ("val", "validation", "valid")
KINDS_LISTED = 10


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: `.DS_Store`, `._0000.png`, `Thumbs.db`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def name_of_test_split(there: Collection[str], place: Path) -> str:
    """Which of the names `there` is the test split of `place`: test, or where there is none the one that is for validation.

    A line of output says what stands for test, or is not used. Raises DatasetError where several may stand for it.
    """
    standing = [name for name in VALIDATION_NAMES if name in there]
    if "test" in there:
        if standing and this_process().leads:
            print(
                f"{place}: not used: {', '.join(standing)} (validation images are taken out of train, "
                "prepare.validation_fraction of them)",
                flush=True,
            )
        return "test"
    if len(standing) > 1:
        raise DatasetError(
            f"{place} has no test, and {', '.join(standing)} that may stand for it; rename the one to test on to test"
        )
    if standing:
        if this_process().leads:
            print(f"{place}: {standing[0]} is the test split, as there is no test", flush=True)
        return standing[0]
    return "test"


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS may write an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def require_one_spelling(place: Path, name: str, first: str, second: str) -> None:
    """Raise DatasetError unless both folders of `place`, whose composed name is `name`, are written alike."""
    if first != second:
        spelt = f"{first!a} and {second!a}"
        raise DatasetError(f"{place} holds two folders of the name {name!r}, written {spelt}; merge or rename them")


def entries(folder: Path) -> list[Path]:
    """What is in `folder` and not hidden, by name; raises DatasetError for a link to nothing, and if it cannot be listed."""
    try:
        found = sorted(Path(entry.path) for entry in os.scandir(folder) if not is_hidden(entry.name))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed ({error}); give the user who runs this access to it") from error
    for path in found:
        if not path.exists():
            raise DatasetError(f"{path} is a link to {path.readlink()}, which is not there; mend or remove the link")
    return found


def class_folders(split: Path) -> dict[str, Path]:
    """The class folders of a split by class name, composed and sorted.

    Raises DatasetError for two folders of one name, for a name that is not UTF-8, and as `entries` does.
    """
    found: dict[str, Path] = {}
    for path in entries(split):
        if not path.is_dir():
            continue
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise DatasetError(f"{split}: the name of the class folder {path.name!r} is not UTF-8; rename it") from None
        name = composed(path.name)
        require_one_spelling(split, name, found.setdefault(name, path).name, path.name)
    return dict(sorted(found.items()))


def files_below(folder: Path) -> list[Path]:
    """All files below `folder` that are not hidden, links followed: those of a folder by name, folders by path.

    That is torchvision's order; the files of `folder` itself come first. Raises DatasetError for a link to a folder that
    holds it, and as `entries` does.
    """
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        for path in entries(place):
            if not path.is_dir():
                found.append(path)
                continue
            if path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):
                raise DatasetError(f"{path} is a link to a folder that holds it; remove the link")
            waiting.append(path)
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def images_below(folder: Path, unread: Counter[str]) -> list[Path]:
    """The images of a class in the order in which they are read; what else is there is counted in `unread` by kind.

    An image is a file with a suffix of a format that Pillow reads. Raises DatasetError for a picture of a format that the
    Pillow at hand cannot decode, where no image is found, and as `files_below` does.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind not in NOT_DECODED}
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in files_below(folder):
        suffix = path.suffix.lower()
        if not path.is_file():
            others["no regular file"] += 1
        elif suffix in known:
            images.append(path)
        elif suffix in PICTURES:
            raise DatasetError(
                f"{path}: the Pillow of this environment ({PIL.__version__}) cannot decode {suffix}; convert such images to "
                "PNG or JPEG, or remove them"
            )
        else:
            others[kind_of(path)] += 1
    if not images:
        held = f", but {listed_kinds(others)}" if others else ""
        raise DatasetError(f"{folder} holds no image{held}; remove the class or fill it")
    unread.update(others)
    return images


def kind_of(path: Path) -> str:
    """What a file that is not read is counted as: its suffix."""
    return path.suffix.lower().encode("ascii", "backslashreplace").decode() or "without a suffix"


def listed_kinds(counts: Counter[str]) -> str:
    """The numbers of files by kind as a sentence has them, the most frequent first: `10 .txt, 2 .mp4`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} {kind}" for kind, count in ordered[:KINDS_LISTED]]
    if rest := ordered[KINDS_LISTED:]:
        listed.append(f"{sum(count for _, count in rest)} of {len(rest)} other kinds")
    return ", ".join(listed)
