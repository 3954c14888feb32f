"""The experiments there are, for the page that lists them: of this checkout and its DVC experiments."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from experiments.description.experiment import PARAMS
from experiments.description.file import Plain
from experiments.overview.lock_files import LOCKS, locked_stages, outdated
from experiments.overview.page import Listed
from experiments.runs.repository import has_commits, stored
from pag_core.errors import ArtifactError
from pag_core.figures.png_record import record_of
from pag_core.params.reading import plain_params
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.paths import FIGURES, METRICS, details_path, measured_path

DETAILS = str(details_path("autoattack"))


def of_checkout(*, figures: bool = True) -> list[Listed]:
    """The results in this checkout, those of its last commit, and every DVC experiment, by name, with or without `figures`.

    What has no metrics is left out, and so is the checkout where it equals another.
    """
    found = list(_of_revisions(figures)) if has_commits() else []
    here = listed(DirFileSystem(str(CHECKOUT)), "workspace", "as it is", figures=figures)
    if all((here.params, here.metrics) != (other.params, other.metrics) for other in found):
        found.insert(0, here)
    return [experiment for experiment in found if experiment.metrics]


def _of_revisions(figures: bool) -> Iterator[Listed]:
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    with Repo(str(CHECKOUT)) as repo:
        if isinstance(repo.scm, NoSCM):
            return
        last = repo.scm.get_rev()
        by_commit = repo.experiments.ls(all_commits=True)
    revisions = [(name, rev, f"DVC, on {commit[:7]}") for commit, found in by_commit.items() for name, rev in found]
    for name, revision, origin in [("last commit", last, last[:7]), *sorted(revisions)]:
        with stored(revision) as files:
            # the last commit of a larger repository may be one without this project
            if revision != last or files.exists(PARAMS):
                yield listed(files, name, origin, figures=figures)


def listed(files: AbstractFileSystem, name: str, origin: str, *, figures: bool = True) -> Listed:
    """An experiment whose params.yaml, metrics and, if wanted, `figures` are at the root of `files`.

    What DVC's lock file records of other parameters or inputs (the last run stopped at an earlier stage) is left out with a
    remark, and so is what is of another network than is there (stages ran one by one), and a figure that is not in DVC's
    cache. Raises ArtifactError or ParamsError that names what is damaged.
    """
    place = f"{name} ({origin})"
    content = _content(files, PARAMS)
    if content is None:
        raise ArtifactError(
            f"{place}: there is no {PARAMS}; give the command that ran it again (finished work is kept)"
        )
    params = plain_params(content, f"{PARAMS} of {place}")
    locks = {f"{path} of {place}": lock for path in LOCKS if (lock := _content(files, path)) is not None}
    old = outdated(locked_stages(locks), params)
    old |= _of_other_networks(files, place, params.get("classifier_checkpoint", "data/classifier"), figures)
    metrics: dict[str, Plain] = {}
    drawn: dict[str, bytes] = {}
    for path in _names(files, METRICS, ".json"):
        text = _content(files, path)
        if text is not None and path not in old:
            metrics[PurePosixPath(path).stem] = _parsed(text, f"{path} of {place}")
    for path in _names(files, FIGURES, ".png") if figures else []:
        png = _content(files, path)
        if png is None:
            _remark(f"{path} of {place} is not in DVC's cache (dvc fetch, or dvc exp run again)")
        elif not {str(FIGURES), path} & old:
            drawn[PurePosixPath(path).stem] = png
    if left_out := sorted(
        path for path in old if path == str(FIGURES) or str(PurePosixPath(path).parent) in (str(METRICS), str(FIGURES))
    ):
        _remark(f"{place}: left out, since made with other parameters or inputs: {', '.join(left_out)}")
    verdicts, attacked = _verdicts(files, place) if DETAILS not in old else ({}, "")
    return Listed(name, origin, params, metrics, drawn, verdicts, attacked)


def _of_other_networks(files: AbstractFileSystem, place: str, checkpoint: str, figures: bool) -> set[str]:
    """The metrics, details and, if wanted, figures that say that they are of another classifier or baseline than is there."""
    networks: dict[str, str] = {}
    for who in ("classifier", "baseline"):
        path = f"{measured_path(who, checkpoint)}/card.json"
        card = _content(files, path)
        if card is not None:
            networks[who] = _parsed(card, f"{path} of {place}").get("checksum", "")
    found: set[str] = set()
    for path in _names(files, details_path("").parent, ".json"):
        details = _content(files, path)
        record = {} if details is None else _parsed(details, f"{path} of {place}").get("provenance", {})
        if any(_differ(part, networks) for part in (record, record.get("model"), record.get("baseline"))):
            found |= {path, str(METRICS / PurePosixPath(path).name)}
    for path in _names(files, FIGURES, ".png") if figures else []:
        if (png := _content(files, path)) is not None and _differ(record_of(png), networks):
            found.add(path)
    return found


def _differ(record: Plain | None, networks: dict[str, str]) -> bool:
    inputs = (record or {}).get("inputs", {})
    return any(inputs.get(who, fingerprint) != fingerprint for who, fingerprint in networks.items())


def _verdicts(files: AbstractFileSystem, place: str) -> tuple[dict[str, str], str]:
    """Which images stand, by the keys of the metrics, and which dataset they are of; nothing where details are not at hand."""
    text = _content(files, DETAILS)
    details = _parsed(text, f"{DETAILS} of {place}") if text is not None else {}
    verdicts = {
        f"autoattack.{who}.{setting}": marks
        for who in ("model", "baseline")
        for setting, marks in details.get(who, {}).get("verdicts", {}).items()
    }
    return verdicts, details["provenance"]["model"]["inputs"]["dataset"] if verdicts else ""


def _names(files: AbstractFileSystem, folder: Path, suffix: str) -> list[str]:
    try:
        found = files.ls(str(folder), detail=False)
    except FileNotFoundError:
        return []
    return sorted(f"{folder}/{PurePosixPath(path).name}" for path in found if path.endswith(suffix))


def _content(files: AbstractFileSystem, path: str) -> bytes | None:
    try:
        content: bytes = files.cat_file(path)
    except FileNotFoundError:
        return None
    return content


def _parsed(text: bytes, place: str) -> Plain:
    try:
        content = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise ArtifactError(f"{place} is damaged ({error}); run the stage that writes it again") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{place} must hold keys and values, not {type(content).__name__}")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _remark(text: str) -> None:
    print(text, file=sys.stderr)
