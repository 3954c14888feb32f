"""The images of an experiment: train and test, as folders or archives, as one image folder of the classes wanted."""

import lzma
import tarfile
import zlib
from pathlib import Path
from typing import Any

import typer

from experiments.description import Experiment
from pag_core.datasets.image_files import (
    VALIDATION_NAMES,
    class_folders,
    composed,
    entries,
    files_below,
    is_hidden,
    name_of_test_split,
    require_one_spelling,
)
from pag_core.pipeline.artifacts import digest, file_digest, replacing_folder, write_json
from pag_core.pipeline.locks import holding

ORIGIN = "origin.json"
# where less of an archive was extracted it was in another place
EXTRACTED = "all files below a class, none hidden"


def on_given_images(experiment: Experiment, images: Path | None, work: Path) -> Experiment:
    """The experiment on the folder of images that its command was given, or on the dataset of its description.

    Raises BadParameter where it needs such a folder and none is given, and as `arrange_images` does.
    """
    if images is None and experiment.needs_images:
        raise typer.BadParameter(f"{experiment.name} takes a folder of images", param_hint="--images")
    return experiment if images is None else experiment.on_images(arrange_images(images, work, experiment.classes))


def arrange_images(images: Path, work: Path, classes: list[str] | None) -> Path:
    """Make an image folder of the classes from `images`, which holds train and test as folders or .tar.* files.

    Where there is no test, images for validation stand for it. Hidden files are left out. Returns the place, which is below
    `work` and named after the fingerprint of the images' content: other images get another place, and none is ever removed.
    Folders are linked, to where they lie now. Raises BadParameter if `images` and `work` overlap, for a class that is not
    there, and for an archive that cannot be read; DatasetError for a link to nothing and for two folders of one name.
    """
    _require_apart(images, work)
    chosen = _chosen(images)
    for path in chosen.values():
        _require_apart(path, work)
    content = {split: _content(path, classes) for split, path in chosen.items()}
    mark = digest({"content": content, "classes": classes})
    place = work / f"images-{mark[:16]}"
    with holding(work / "locks" / place.name, f"arranging the images in {place}"):
        return _arranged(place, chosen, classes, mark)


def _chosen(images: Path) -> dict[str, Path]:
    """The folder or the archive of each split; a line of output says which of several it is."""
    found = {
        name: [path for path in (images / name, *sorted(images.glob(f"{name}.tar*"))) if path.exists()]
        for name in ("train", "test", *VALIDATION_NAMES)
    }
    test = name_of_test_split([name for name, paths in found.items() if paths], images)
    for name in ("train", test):
        if not found[name]:
            raise typer.BadParameter(f"{images} holds neither {name}/ nor {name}.tar.*", param_hint="--images")
        first, *others = (path.name for path in found[name])
        if others:
            print(f"{images}: {first} is read, and not {', '.join(others)}", flush=True)
    return {"train": found["train"][0], "test": found[test][0]}


def is_arranged(folder: Path) -> bool:
    """Whether `arrange_images` made the folder, which is named after its content: other images have another."""
    return (folder / ORIGIN).exists()


def _arranged(place: Path, chosen: dict[str, Path], classes: list[str] | None, mark: str) -> Path:
    if is_arranged(place):
        # equal images may have been elsewhere, where they can have changed since
        for split, path in chosen.items():
            if path.is_dir():
                _link(path, place, split, classes)
        return place
    if place.exists():
        raise typer.BadParameter(f"{place} exists and was not made by this program; move it away", param_hint="--work")
    with replacing_folder(place) as partial:
        for split, path in chosen.items():
            if path.is_dir():
                (partial / split).mkdir()
                _link(path, partial, split, classes)
            else:
                _extract(path, partial, split, classes)
        write_json(partial / ORIGIN, {"mark": mark, "classes": classes})
    return place


def _require_apart(images: Path, work: Path) -> None:
    one, other = images.resolve(), work.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise typer.BadParameter(
            f"the images ({one}) and the working folder ({other}) are the same or one holds the other; give a --work "
            "that is apart from the images",
            param_hint="--images",
        )


def _content(path: Path, classes: list[str] | None) -> Any:
    """SHA-256 of an archive, or of each file below the class folders by name."""
    if path.is_file():
        return {"archive": file_digest(path), "extracted": EXTRACTED}
    return {
        str(file.relative_to(path)): file_digest(file)
        for folder in _class_folders(path, classes).values()
        for file in files_below(folder)
        if file.is_file()
    }


def _class_folders(path: Path, classes: list[str] | None) -> dict[str, Path]:
    folders = class_folders(path)
    _require_classes(path, set(folders), classes)
    return {name: folder for name, folder in folders.items() if _is_wanted(name, classes)}


def _is_wanted(name: str, classes: list[str] | None) -> bool:
    return classes is None or name in map(composed, classes)


def _require_classes(path: Path, found: set[str], classes: list[str] | None) -> None:
    if missing := [name for name in classes or [] if composed(name) not in found]:
        raise typer.BadParameter(
            f"{path} lacks {', '.join(missing)} of the description's classes; it holds {', '.join(sorted(found)) or 'none'}",
            param_hint="--images",
        )


def _link(path: Path, place: Path, split: str, classes: list[str] | None) -> None:
    """Make the split of `place` links to the class folders below `path` and to files beside them, and nothing else."""
    targets = {name: folder.resolve() for name, folder in _class_folders(path, classes).items()}
    # which prepare counts
    targets |= {file.name: file.resolve() for file in entries(path) if file.is_file()}
    for link in (place / split).iterdir():
        if link.name not in targets:
            link.unlink()
    # not in the split, where it would be one more class; a command that reads the images meanwhile finds either link
    partial = place.with_name(f".{place.name}.link.partial")
    for name, target in targets.items():
        link = place / split / name
        if not link.is_symlink() or link.readlink() != target:
            partial.unlink(missing_ok=True)
            partial.symlink_to(target)
            partial.replace(link)


def _extract(archive: Path, folder: Path, split: str, classes: list[str] | None) -> None:
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
                    name = composed(parts[0])
                    require_one_spelling(archive, name, spellings.setdefault(name, parts[0]), parts[0])
                    if not _is_wanted(name, classes):
                        continue
                    parts[0] = name
                copy = folder.joinpath(split, *parts)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(_content_of(file, member, archive))
            _require_end(file)
    except (EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, OSError) as error:
        # of the system, such as a full disk; damage has no number
        if getattr(error, "errno", None) is not None:
            raise
        raise typer.BadParameter(
            f"{archive} cannot be read to its end ({error}); it is cut off, damaged or no archive: copy or download it again",
            param_hint="--images",
        ) from None
    if not spellings:
        raise typer.BadParameter(f"{archive} holds no {root}/CLASS/IMAGE", param_hint="--images")
    _require_classes(archive, set(spellings), classes)


def _content_of(file: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> bytes:
    """The bytes of a member, or of the one that it is a link to; raises BadParameter where there are none."""
    try:
        source = file.extractfile(member)
    except (KeyError, RecursionError):
        source = None
    if source is None:
        link = f"a link to {member.linkname}, and the archive holds no such file"
        raise typer.BadParameter(
            f"{archive}: {member.name} is {link if member.linkname else 'no file'}; make the archive anew without it",
            param_hint="--images",
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
