"""The page of all experiments: what it finds, what its table holds, and what it says where something is wrong."""

import base64
import io
import itertools
import json
import re
import struct

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from matplotlib.figure import Figure
from PIL import Image, ImageFile

from experiments import page
from experiments.overview.collection import listed
from experiments.overview.page import Listed, render_overview, table
from pag_core.errors import ArtifactError, PagError
from pag_core.figures.palette import save_figure
from pag_core.params.yaml_text import read_yaml, written_yaml
from tests.fixtures.results_folders import autoattack, listed_in, png, write_results

HOSTILE = "<img src=x onerror=alert(1)></script><b>'\"&"


def content_of(html):
    return json.loads(re.search(r'<script id="content" type="application/json">(.*?)</script>', html)[1])


def shown(experiments):
    columns, cells = table(experiments)
    return [column.key for column in columns if column.shown], [
        {column.key: value for column, value in zip(columns, row, strict=True)} for row in cells
    ]


@pytest.fixture
def work(tmp_path, plain_params):
    scores = {"PAG": 0.8187, "PAG of baseline": 0.1}
    full = {"autoattack": autoattack(0.945, 0.475), "pag_score": scores}
    write_results(tmp_path, "sbg", plain_params, {}, full, {"targeted_pgd": png(30), "gradient_sources": png(50)})
    cm = {"autoattack": autoattack(0.915, 0.33)}
    write_results(tmp_path, "cm", plain_params, {"source": "cm", "processes": 4}, cm, {"gradient_sources": png(50)})
    adversarial = {"source": "none", "method": "at", "at.radius": "8/255"}
    write_results(tmp_path, "at", plain_params, adversarial, {"autoattack": autoattack(0.97, 0.36)})
    return tmp_path


def test_the_table(work):
    keys, rows = shown(listed_in(work))
    assert keys == ["name", "seed", "source", "method", "lambda", "objective.output",
                    "autoattack.model.clean", "autoattack.model.L2 0.75", "pag_score.PAG"]  # fmt: skip
    assert [row["name"] for row in rows] == ["at", "cm", "sbg"]
    # auto as what it stands for, sections of methods that are not used left out, no value where there is none
    assert [row["lambda"] for row in rows] == [0.0, 1.5, 2.0]
    assert [row["at.radius"] for row in rows] == ["8/255", None, None]
    assert [row["pag_score.PAG"] for row in rows] == [None, None, 0.8187]
    assert [row["autoattack.model.L2 0.75"] for row in rows] == [0.36, 0.33, 0.475]
    assert rows[0]["diffusion.timestep_window"] == "[150, 250]" and rows[0]["train.ema_decay"] == "null"
    assert rows[0]["train.compile"] == "false" and "processes" not in rows[0]


def test_what_numbers_were_measured_with_is_shown_where_it_differs(work, plain_params):
    assert "autoattack.images" not in shown(listed_in(work))[0]
    write_results(work, "few", plain_params, {"autoattack.images": 10}, {"autoattack": autoattack(0.9, 0.5, images=50)})
    keys, rows = shown(listed_in(work))
    # the parameter, and what was measured, which are told apart
    assert [key for key in keys if key.endswith("images")] == ["autoattack.images", "metrics/autoattack.images"]
    assert [row["autoattack.images"] for row in rows] == ["auto", "auto", 10, "auto"]
    assert [row["metrics/autoattack.images"] for row in rows] == [200, 200, 50, 200]


def test_sections_and_files_stay_together(plain_params):
    """Also where params.yaml has gained keys since an experiment."""
    older = {"seed": 1, "cm": {"factor": 1.0}, "train": {"epochs": 2}, "dataset": "digits"}
    metrics = {"toy": {"clean": 1.0}, "diffusion": {"images": 5}, "autoattack": autoattack(0.9, 0.5)}
    other = Listed("b", "", plain_params, {**metrics, "diffusion": {"images": 6}}, {})
    columns, _ = table([Listed("a", "", older, metrics, {}), other])
    groups = [column.group for column in columns]
    assert [group for group, _ in itertools.groupby(groups)] == list(dict.fromkeys(groups))
    assert groups[2:4] == ["parameters", "parameters"] and groups[-1] == "metrics/toy"
    assert not any(column.shown for column in columns if column.group in ("metrics/toy", "metrics/diffusion"))


def test_each_picture_is_there_once_and_with_all_its_pixels(work):
    html = render_overview(listed_in(work))
    content = content_of(html)
    assert [figure["name"] for figure in content["figures"]] == ["targeted_pgd", "gradient_sources"]
    assert all("Figure" in figure["caption"] for figure in content["figures"])
    places = [experiment["figures"] for experiment in content["experiments"]]
    assert places == [{}, {"gradient_sources": 0}, {"gradient_sources": 0, "targeted_pgd": 1}]
    for picture, original in zip(content["pictures"], (png(50), png(30)), strict=True):
        start, _, encoded = picture.partition(",")
        assert start == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as found, Image.open(io.BytesIO(original)) as wanted:
            assert found.format == "WEBP"
            assert found.size == wanted.size and found.convert("RGB").tobytes() == wanted.tobytes()
    assert html == render_overview(listed_in(work))


def test_a_picture_that_is_too_long_for_webp_stays_png():
    figures = {"long": png(16384), "longest": png(16383)}
    as_png, as_webp = content_of(render_overview([Listed("x", "", {}, {}, figures)]))["pictures"]
    assert as_png == f"data:image/png;base64,{base64.b64encode(png(16384)).decode()}"
    assert as_webp.startswith("data:image/webp;base64,")
    with pytest.raises(PagError, match=r"figures/long\.png of x is damaged"):
        render_overview([Listed("x", "", {}, {}, {"long": png(16384)[:-60]})])


@pytest.mark.parametrize("kind", [struct.error, ValueError, TypeError, Image.DecompressionBombError])
def test_no_exception_of_pillow_leaves_without_the_pictures_name(monkeypatch, kind):
    def failing(self):
        raise kind("of the library")

    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    with pytest.raises(PagError, match=rf"figures/one\.png of x is damaged \({kind.__name__}: of the library\)"):
        render_overview([Listed("x", "", {}, {}, {"one": png(4)})])


def test_the_page_needs_nothing_outside_itself_and_escapes_names(work):
    plain = render_overview(listed_in(work))
    assert not re.search(r"https?://|<link|<iframe|@import|url\(|\ssrc=|\shref=", plain)
    html = render_overview(
        [Listed(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: {HOSTILE: HOSTILE}}, {HOSTILE: png(20)})]
    )
    assert (
        html.count("<script") == html.count("</script") == 2
        and "<img src" not in html
        and "onerror=alert(1)>" not in html
    )
    assert content_of(html)["experiments"][0]["cells"][:2] == [HOSTILE, HOSTILE]


def test_a_value_of_any_kind_can_be_shown(plain_params):
    odd = {
        "none": None,
        "infinite": float("inf"),
        "yes": True,
        "list": [1, "ü"],
        "empty": {},
        "day": read_yaml("2026-11-25"),
    }
    _, (row,) = shown([Listed("x", "y", {"odd": odd}, {"m": {"gone": None, "whole": 3}}, {})])
    wanted = {"odd.none": "null", "odd.infinite": "Infinity", "odd.yes": "true", "odd.list": '[1, "ü"]', "m.whole": 3}
    assert {**row, **wanted} == row and "m.gone" not in row and row["odd.day"] == '"2026-11-25"'


def lock(stages):
    return written_yaml({"schema": "2.0", "stages": stages}).encode()


@pytest.mark.parametrize("content", [b"", b"<<<<<<< HEAD\nstages: {}\n=======", b"schema: '2.0'", b"\xff"])
def test_a_damaged_lock_file_is_named(work, content):
    (work / "sbg/dvc.lock").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"dvc\.lock of sbg \(.*\) is damaged .*dvc repro"):
        listed_in(work)


def test_outdated_results_are_left_out_with_a_remark(work, capsys):
    folder = work / "sbg"
    outs = [{"path": path, "md5": "m"} for path in ("metrics/autoattack.json", "figures")]
    (folder / "dvc.lock").write_bytes(lock({"all": {"params": {"params.yaml": {"seed": 1}}, "outs": outs}}))
    found = listed(DirFileSystem(str(folder)), "sbg", "here")
    assert found.metrics.keys() == {"pag_score"} and found.figures == {}
    assert "sbg (here): left out" in (said := capsys.readouterr().err) and "figures, metrics/autoattack.json" in said


def test_a_figure_that_dvc_lists_but_does_not_hold_is_remarked_on(work, capsys):
    class Emptied(DirFileSystem):
        def cat_file(self, path, *args, **options):
            if path == "figures/targeted_pgd.png":
                raise FileNotFoundError(path)
            return super().cat_file(path, *args, **options)

    assert listed(Emptied(str(work / "sbg")), "sbg", "here", figures=False).figures == {}
    assert capsys.readouterr().err == ""
    found = listed(Emptied(str(work / "sbg")), "sbg", "here")
    assert found.figures.keys() == {"gradient_sources"} and found.metrics.keys() == {"autoattack", "pag_score"}
    assert "figures/targeted_pgd.png of sbg (here) is not in DVC's cache" in capsys.readouterr().err


def test_the_command(work, tmp_path_factory, capsys, monkeypatch):
    monkeypatch.setattr(page, "of_checkout", lambda figures: listed_in(work))
    output = tmp_path_factory.mktemp("made") / "deeper/experiments.html"
    page.main(output)
    assert "3 experiments, " in capsys.readouterr().out and "<h1>3 experiments</h1>" in output.read_text()
    first = output.read_bytes()
    page.main(output)
    assert output.read_bytes() == first


def test_the_table_as_text(work, capsys, monkeypatch):
    """The page's cells, column by column below their titles; figures are not asked for."""
    found = []

    def of_checkout(*, figures):
        found.append(figures)
        return listed_in(work)

    monkeypatch.setattr(page, "of_checkout", of_checkout)
    page.main(text=True)
    lines = capsys.readouterr().out.splitlines()
    assert found == [False] and [line.split() for line in lines[-3:]] == [
        ["at", "3407", "none", "at", "0", "log_softmax", "0.970", "0.360", "-"],
        ["cm", "3407", "cm", "standard", "1.5", "logit", "0.915", "0.330", "-"],
        ["sbg", "3407", "sbg", "standard", "2", "log_softmax", "0.945", "0.475", "0.819"],
    ]
    assert lines[0].split() == ["parameters", "objective", "autoattack", "pag_score"]
    assert lines[-4].split() == ["experiment", "seed", "source", "method", "lambda", "output", "clean", "0.75", "PAG"]
    ends = [[match.end() for match in re.finditer(r"\S+", line)][1:] for line in lines[-4:]]
    assert ends[0] == ends[1] == ends[2] == ends[3]
    assert all(
        lines[0].index(group) < end for group, end in (("objective", ends[0][4]), ("pag_score", ends[0][-1] + 1))
    )


def test_nothing_to_show(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "of_checkout", lambda figures: [])
    with pytest.raises(SystemExit, match="1"):
        page.main(tmp_path / "page.html")
    assert "No experiment has results yet" in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics/autoattack.json", "{", r"metrics/autoattack\.json of cm .* is damaged"),
        ("metrics/autoattack.json", "[]", r"metrics/autoattack\.json of cm .* must hold keys and values, not list"),
        ("metrics/autoattack.json", '{"model": NaN}', r"metrics/autoattack\.json of cm .* is damaged"),
        ("params.yaml", "a: [", r"params\.yaml of cm .* is not YAML"),
        ("params.yaml", None, r"cm .*: there is no params\.yaml"),
        ("figures/gradient_sources.png", "text", r"figures/gradient_sources\.png of cm is damaged"),
    ],
)
def test_what_is_damaged_is_named(work, file, text, message):
    path = work / "cm" / file
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(PagError, match=message):
        render_overview(listed_in(work))


def test_what_is_of_another_network_than_is_there_is_left_out(tmp_path, plain_params, capsys):
    """Stages ran one by one: the classifier was trained again, and of what was measured only some."""

    def record(**networks):
        return {"params": {}, "inputs": {"dataset": "d", **networks}}

    (tmp_path / "params.yaml").write_text(written_yaml(plain_params), encoding="utf-8")
    contents = {
        "data/classifier/card.json": {"checksum": "new"},
        "data/baseline/card.json": {"checksum": "b"},
        "metrics/training.json": {"proxy": 0.5},
        "metrics/details/training.json": {"provenance": record(classifier="new")},
        "metrics/foolbox.json": {"Foolbox": 0.5},
        "metrics/details/foolbox.json": {
            "provenance": {"model": record(classifier="new"), "baseline": record(baseline="former")}
        },
        "metrics/autoattack.json": {"model": {"clean": 1.0}},
        "metrics/details/autoattack.json": {
            "model": {"verdicts": {"clean": "1"}},
            "provenance": {"model": record(classifier="former"), "baseline": record(baseline="b")},
        },
        "metrics/pag_score.json": {"PAG": 0.5},
        "metrics/details/pag_score.json": {"model": {}},
    }
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "figures").mkdir()
    save_figure(Figure(figsize=(1, 1)), tmp_path / "figures/targeted_pgd.png", record(classifier="new", baseline="b"))
    save_figure(Figure(figsize=(1, 1)), tmp_path / "figures/training_curves.png", record(classifier="former"))
    found = listed(DirFileSystem(str(tmp_path)), "workspace", "as it is")
    # what says nothing, as of an earlier version, stays
    assert found.metrics == {"training": {"proxy": 0.5}, "pag_score": {"PAG": 0.5}} and found.verdicts == {}
    assert found.figures.keys() == {"targeted_pgd"}
    remark = "figures/training_curves.png, metrics/autoattack.json, metrics/foolbox.json"
    assert (
        f"workspace (as it is): left out, since made with other parameters or inputs: {remark}"
        in capsys.readouterr().err
    )


def test_equal_pictures_of_several_networks_are_on_the_page_once(tmp_path, plain_params):
    def figure(name, width):
        save_figure(Figure(figsize=(width, 1)), tmp_path / name, {"inputs": {"classifier": name}})
        return (tmp_path / name).read_bytes()

    first, second, other = figure("first.png", 1), figure("second.png", 1), figure("other.png", 2)
    assert first != second
    for name, picture in (("a", first), ("b", second), ("c", other)):
        write_results(
            tmp_path, name, plain_params, {}, {"autoattack": autoattack(0.9, 0.5)}, {"gradient_sources": picture}
        )
    content = content_of(render_overview(listed_in(tmp_path)))
    assert [found["figures"] for found in content["experiments"]] == [{"gradient_sources": n} for n in (0, 0, 1)]
    assert len(content["pictures"]) == 2
