"""The images of an experiment: train and test, as folders or archives, as one image folder of the classes wanted."""

import tarfile
from pathlib import Path
from typing import Any

import typer

from pag_core.pipeline.artifacts import digest, file_digest, replacing_folder, write_json
from pag_core.pipeline.locks import holding

SPLITS = ("train", "test")


def arrange_images(images: Path, work: Path, classes: list[str] | None) -> Path:
    """Make an image folder of the classes from `images`, which holds train and test as folders or .tar.* files.

    Returns the place, which is below `work` and named after the fingerprint of the images' content: other images get
    another place, and none is ever removed. Raises BadParameter if `images` and `work` overlap.
    """
    _require_apart(images, work)
    found = {split: [images / split, *sorted(images.glob(f"{split}.tar*"))] for split in SPLITS}
    chosen = {split: next((path for path in paths if path.exists()), None) for split, paths in found.items()}
    for split, path in chosen.items():
        if path is None:
            raise typer.BadParameter(f"{images} holds neither {split}/ nor {split}.tar.*", param_hint="--images")
        _require_apart(path, work)
    content = {split: _content(path, classes) for split, path in chosen.items() if path is not None}
    mark = digest({"content": content, "classes": classes})
    place = work / f"images-{mark[:16]}"
    with holding(work / "locks" / place.name, f"arranging the images in {place}"):
        return _arranged(place, chosen, classes, mark)


def _arranged(place: Path, chosen: dict[str, Path | None], classes: list[str] | None, mark: str) -> Path:
    if (place / "origin.json").exists():
        return place
    if place.exists():
        raise typer.BadParameter(f"{place} exists and was not made by this program; move it away", param_hint="--work")
    with replacing_folder(place) as partial:
        for split, path in chosen.items():
            assert path is not None
            if path.is_dir():
                (partial / split).mkdir()
                for folder in path.iterdir():
                    if folder.is_dir() and (classes is None or folder.name in classes):
                        (partial / split / folder.name).symlink_to(folder.resolve())
            else:
                _extract(path, partial, split, classes)
        write_json(partial / "origin.json", {"mark": mark, "classes": classes})
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
        return file_digest(path)
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    return {
        str(file.relative_to(path)): file_digest(file)
        for folder in folders
        if classes is None or folder.name in classes
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _extract(archive: Path, folder: Path, split: str, classes: list[str] | None) -> None:
    # file by file: extractall has its guard against paths that lead outside only since Python 3.11.4
    found = False
    with tarfile.open(archive) as file:
        for member in file:
            parts = Path(member.name).parts
            if len(parts) != 3 or parts[0] != split or ".." in parts or (classes and parts[1] not in classes):
                continue
            source = file.extractfile(member)
            if source is not None:
                copy = folder.joinpath(*parts)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(source.read())
                found = True
    if not found:
        raise typer.BadParameter(f"{archive} holds no {split}/CLASS/IMAGE", param_hint="--images")
