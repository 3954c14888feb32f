"""The paper's tables as descriptions: what they read as, what they print beside published numbers, and their gaps."""

import dataclasses
import fractions

import pytest
import typer

from experiments.best import best
from experiments.description.experiment import base_params, read_experiment
from experiments.table import as_csv, cells, markdown
from pag_core.evaluation.attacks import FOOLBOX_NAMES
from pag_core.params.yaml_text import read_yaml, written_yaml
from tests.fixtures.samples import ROOT

TABLES = sorted((ROOT / "experiments/tables").glob("*.yaml"))


@pytest.mark.parametrize("size", ["mini", "full"])
@pytest.mark.parametrize("file", TABLES, ids=[file.stem for file in TABLES])
def test_every_table_is_valid(tmp_path, file, size):
    images = tmp_path if (file.stem, size) == ("table_2", "mini") else None
    experiment = read_experiment(file, size, [], images)
    for params in experiment.params.values():
        assert params["dataset"] in (
            {"digits", "image_folder"} if size == "mini" else {"cifar10", "stl10", "cifar100", "tiny_imagenet"}
        )
    if size == "full":
        # Appendix G.2: seven steps of 1.5 radii in all
        for inner in (params["at"] for params in experiment.params.values() if params["method"] == "at"):
            steps, radius = fractions.Fraction(inner["step_size"]), fractions.Fraction(inner["radius"])
            assert inner["steps"] == 7 and steps * 7 == radius * fractions.Fraction(3, 2)
    gaps = markdown(experiment, {}).splitlines()
    rows = [line for line in gaps if "not run" in line]
    assert len(rows) == (len(FOOLBOX_NAMES) if experiment.stages == ("validation", "foolbox") else len(experiment.rows))
    if (file.stem, size) != ("table_2", "mini") and file.stem != "figure_8":
        # every row has its published numbers, one for each column
        assert all(row.published for row in experiment.rows)
        columns = {cell.setting for cell in cells(experiment, {}) if cell.published is not None}
        assert len(columns) >= 2


OTHERS = [path for path in sorted((ROOT / "experiments").glob("*.yaml")) if path.name != "published.yaml"]


@pytest.mark.parametrize(
    ("file", "size"),
    [(path, size) for path in OTHERS for size in read_yaml(path.read_text(encoding="utf-8"))["sizes"]],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_other_description_is_valid(file, size):
    """All values, stages and rows, at every size."""
    experiment = read_experiment(file, size, [])
    assert experiment.params and {row.classifier for row in experiment.rows} <= experiment.runs.keys()


def test_published_numbers_are_those_of_the_paper():
    """A number of each table, copied once more by hand."""
    found = {
        (file.stem, cell.row, number): cell.published
        for file in TABLES
        for number, cell in enumerate(cells(read_experiment(file, "full", []), {}))
    }
    assert found["table_1", "ResNet: SBG", 13] == 55.39 and found["table_1", "ViT: AT L2", 41] == 8.13
    assert found["table_2", "STL-10: SBG", 8] == 43.53 and found["table_2", "CIFAR-100: vanilla", 15] == 74.36
    assert found["table_3", "SBG", 4] == 30.43 and found["table_4", "TRADES and SBG", 10] == 62.66
    assert found["table_5", "MLP-Mixer: SBG", 15] == 35.97 and found["table_7", "CM", 5] == 3.14
    assert found["table_6", "EAD", 6] == 8.57 and found["table_6", "Salt-and-pepper noise", len(FOOLBOX_NAMES)] == 42.59
    assert found["figure_5", "lambda 0.5", 6] is None and found["figure_5", "lambda 0.5", 7] == 48.34


@pytest.mark.parametrize(
    ("radii", "columns", "left_out"),
    [
        # in the order of ours, by norm
        ("{Linf: [0.1], L2: [1.5]}", {"clean": 93.61, "Linf 0.1": 23.97, "L2 1.5": 55.39}, ""),
        ("{L2: [0.75, 1.5]}", {"clean": 93.61}, "L2 0.5, Linf 8/255"),
        # the very radius among several
        ("{L2: [0.25, 0.5], Linf: [0.1]}", {"clean": 93.61, "L2 0.5": 55.39, "Linf 0.1": 23.97}, ""),
        ("{Linf: [0.1, 0.2]}", {"clean": 93.61}, "L2 0.5, Linf 8/255"),
    ],
)
def test_published_numbers_stand_beside_ours_of_their_norm(radii, columns, left_out):
    experiment = read_experiment(ROOT / "experiments/tables/table_1.yaml", "mini", [f"autoattack.radii={radii}"])
    found = cells(experiment, {})
    clean = next(cell for cell in found if cell.row == "ResNet: vanilla" and cell.setting == "clean")
    others = [cell for cell in found if cell.row == "ResNet: SBG" and cell.setting != "clean"]
    beside = {cell.setting: cell.published for cell in [clean, *others] if cell.published is not None}
    assert beside == columns
    remark = "Published and not shown, as no one column of ours is its counterpart: "
    assert markdown(experiment, {}).partition(remark)[2].strip(".\n") == left_out


def test_autoattack_and_foolbox_have_a_table_each():
    """Published accuracies under AutoAttack do not stand beside Foolbox's attacks."""
    experiment = read_experiment(ROOT / "experiments/tables/table_3.yaml", "full", [])
    both = dataclasses.replace(experiment, stages=("autoattack", "foolbox"))
    attacked = {"clean": 0.9, "L2 1.0": 0.5, "Linf 16/255": 0.25}
    under = {name: {"L2 1": 0.5, "L2 2": 0.0, "None": 0.0} for name in FOOLBOX_NAMES}
    of_run = {
        "autoattack": {"images": 100, "model": attacked, "baseline": attacked},
        "details/foolbox": {"images": 50, "model": under, "baseline": under},
    }
    text = markdown(both, {run: of_run for runs in both.runs.values() for run in runs})
    _, first, said, second, said_then = text.strip().split("\n\n")
    assert "| SBG | 90.0 | 78.56 | +11.4 | 50.0 | 30.43 | +19.6 | 25.0 | 1.92 | +23.1 |" in first.splitlines()
    assert second.splitlines()[0] == "|  | vanilla | SBG | AT Linf | AT L2 |" and len(second.splitlines()) == 2 + 7
    assert second.splitlines()[2] == "| Salt-and-pepper noise | 25.0 | 25.0 | 25.0 | 25.0 |"
    assert (said, said_then) == ("Percent; 100 test images; one seed.", "Percent; 50 test images; one seed.")


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ([], True),
        (["prepare.image_size=16"], False),
        (["prepare.classes=[cat, dog]"], False),
        (["dataset=cifar100"], False),
    ],
    ids=str,
)
def test_a_difference_is_from_numbers_of_the_same_images_alone(changes, compared):
    experiment = read_experiment(ROOT / "experiments/tables/table_3.yaml", "full", changes)
    attacked = {"clean": 0.9, "L2 1.0": 0.5, "Linf 16/255": 0.25}
    of_run = {"autoattack": {"images": 100, "model": attacked, "baseline": attacked}}
    measured = {run: of_run for runs in experiment.runs.values() for run in runs}
    lines = markdown(experiment, measured).splitlines()
    with_it = "| SBG | 90.0 | 78.56 | +11.4 | 50.0 | 30.43 | +19.6 | 25.0 | 1.92 | +23.1 |"
    without = "| SBG | 90.0 | 78.56 | 50.0 | 30.43 | 25.0 | 1.92 |"
    assert (with_it in lines, without in lines) == (compared, not compared)
    assert as_csv(experiment, measured).count(",11.44\n") == int(compared)


def test_published_numbers_say_what_they_are_of():
    for file in TABLES:
        experiment = read_experiment(file, "full", [])
        params = {name: experiment.params[runs[0]] for name, runs in experiment.runs.items()}
        rows = [row for row in experiment.rows if row.published]
        assert all(row.published_on == params[row.classifier]["dataset"] for row in rows), file
        assert rows or file.stem == "figure_8"


@pytest.mark.parametrize("named", [False, True])
def test_a_further_attack_is_a_line_without_a_published_number(monkeypatch, named):
    """An eighth of Foolbox's attacks, which one seed of three has measured; the line of EAD, the seventh, is as ever."""
    if named:
        monkeypatch.setitem(FOOLBOX_NAMES, "NewAttack", "new attack")
    experiment = read_experiment(ROOT / "experiments/tables/table_6.yaml", "mini", [])
    measured = {}
    for runs in experiment.runs.values():
        for seed, run in enumerate(runs):
            attacks = {"EADAttack": {"L1 1": 0.25, "L1 2": 0.75, "None": 0.0}}
            attacks |= {"NewAttack": {"L2 1": 0.5, "L2 2": 0.25, "None": 0.0}} if seed == 2 else {}
            measured[run] = {"details/foolbox": {"images": 50, "model": {"clean": 1.0, **attacks}}}
    lines = markdown(experiment, measured).splitlines()
    ead, *further = [line for line in lines if line.startswith(("| EAD", "| new", "| New"))]
    # digits have no difference from published numbers of CIFAR-10
    assert ead == "| EAD | 50.0 (50.0 to 50.0) | 8.57 | 50.0 (50.0 to 50.0) | 33.64 |"
    new = "new attack" if named else "NewAttack"
    assert further == [f"| {new} | 37.5 (one seed) |  | 37.5 (one seed) |  |"]
    assert len([line for line in lines if "not run" in line]) == len(FOOLBOX_NAMES) - (2 if named else 1)


def test_several_seeds_give_a_mean_and_a_range():
    experiment = read_experiment(ROOT / "experiments/digits_rivals.yaml", "full", [])
    measured = {
        run: {
            "autoattack": {
                "images": 200,
                "model": {"clean": 0.9, "L2 0.75": 0.1 * seed, "Linf 0.15": 0.5},
                "baseline": {"clean": 0.95, "L2 0.75": 0.0, "Linf 0.15": 0.0},
            }
        }
        for name, runs in experiment.runs.items()
        for seed, run in enumerate(runs)
        if name != "trades" and not (name == "nn" and seed == 1) and not (name == "cm" and seed < 2)
    }
    lines = markdown(experiment, measured).splitlines()
    assert lines[2] == "|  | clean | L2 0.75 | Linf 0.15 |"
    # rows of fewer seeds than the table say so
    assert "| cm | 90.0 (one seed) | 20.0 (one seed) | 50.0 (one seed) |" in lines
    nn = "| nn | 90.0 (90.0 to 90.0; 2 seeds) | 10.0 (0.0 to 20.0; 2 seeds) | 50.0 (50.0 to 50.0; 2 seeds) |"
    assert nn in lines
    assert "| sbg | 90.0 (90.0 to 90.0) | 10.0 (0.0 to 20.0) | 50.0 (50.0 to 50.0) |" in lines
    assert "| trades | not run | not run | not run |" in lines
    assert lines[-1] == "Percent; 200 test images; 3 seeds, mean (range)."
    table = {tuple(line.split(",")[1:3]): line for line in as_csv(experiment, measured).splitlines()}
    assert table["sbg", "L2 0.75"] == "digits_rivals-full,sbg,L2 0.75,10.00,0.00,20.00,3,200,,,"
    assert table["trades", "clean"] == "digits_rivals-full,trades,clean,,,,0,,,,"
    assert len(table) == 1 + 3 * 15


VALIDATED = {"provenance": {"params": {"validation": {"images": 7}}}}


def test_an_experiment_that_attacks_nothing_shows_what_validation_says(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        "stages: [train]\nseeds: [1, 2]\nsizes: {full: {}}\n"
        "params: {validation: {images: auto, radii: {L2: [0.5, 1], Linf: [8/255]}}}\n"
        "classifiers: {cm: {source: cm}, nn: {source: nn}}\n"
    )
    experiment = read_experiment(file, "full", [])
    measured = {
        f"cm-seed{seed}": {
            "training": {
                "validation": {"clean": 0.9},
                "proxy": {"L2 0.5": 0.1 * seed, "L2 1": 0.0, "Linf 8/255": 0.25},
            },
            "details/training": VALIDATED,
        }
        for seed in (1, 2)
    }
    lines = markdown(experiment, measured).splitlines()
    assert lines[2] == "|  | clean | L2 0.5 | L2 1 | Linf 8/255 |"
    assert lines[4:6] == [
        "| cm | 90.0 (90.0 to 90.0) | 15.0 (10.0 to 20.0) | 0.0 (0.0 to 0.0) | 25.0 (25.0 to 25.0) |",
        "| nn | not run | not run | not run | not run |",
    ]
    assert lines[-1].startswith("Percent; 7 validation images under APGD")


def swept(tmp_path, proxies, stages="[validation]", **other):
    """A sweep of three values with two seeds, and what its runs measured: the robust accuracies in L2 and Linf by run."""
    (tmp_path / "sweep.yaml").write_text(
        written_yaml({"seeds": [1, 2], "sizes": {"full": {}}, "grid": {"lambda": [0.5, 1, 2]}, **other})
        + f"stages: {stages}\n"
    )
    attacked = {"images": 10, "model": {"clean": 1.0, "L2 0.75": 0.5, "Linf 0.15": 0.5}}
    attacked["baseline"] = attacked["model"]
    measured = {
        f"lambda-{value}-seed{seed}": {
            "training": {"validation": {"clean": 1 - l2}, "proxy": {"L2 0.75": l2, "Linf 0.15": linf}},
            "details/training": VALIDATED,
            # the worse on validation images, the better on test images
            "autoattack": {**attacked, "model": {"clean": 1.0, "L2 0.75": 1 - l2, "Linf 0.15": 1 - linf}},
        }
        for (value, seed), (l2, linf) in proxies.items()
    }
    return read_experiment(tmp_path / "sweep.yaml", "full", []), measured


PROXIES = {
    (0.5, 1): (0.5, 0.3), (0.5, 2): (0.1, 0.3), (1, 1): (0.3, 0.4), (1, 2): (0.3, 0.6), (2, 1): (0.2, 0.6), (2, 2): (0.3, 0.3)
}  # fmt: skip


def test_the_best_of_a_sweep_is_by_validation_over_seeds(tmp_path):
    """Means of L2 and Linf: 0.3, 0.4 and 0.35; of test images the order is the other way round."""
    experiment, measured = swept(tmp_path, PROXIES, "[autoattack]")
    text = markdown(experiment, measured)
    validation, said, test, _, named = text.strip().split("\n\n")[1:]
    assert (
        "| **lambda-1** (best by validation) | 70.0 (70.0 to 70.0) | 30.0 (30.0 to 30.0) | 50.0 (40.0 to 60.0) |"
        in validation
    )
    assert "| lambda-0.5 | 70.0 (50.0 to 90.0) | 30.0 (10.0 to 50.0) | 30.0 (30.0 to 30.0) |" in validation
    assert validation.splitlines()[0] == "|  | validation clean | validation L2 0.75 | validation Linf 0.15 |"
    assert said == "Percent; 7 validation images under APGD (clean: all of them); 2 seeds, mean (range)."
    assert test.splitlines()[2].startswith("| vanilla |") and "| **lambda-1** (best by validation) | 100.0" in test
    assert named == "Best by validation (mean of L2 0.75, Linf 0.15): lambda-1: 40.0 %."
    assert text.count("best by validation") == 2
    assert "Best by validation (Linf 0.15): lambda-1: 50.0 %." in markdown(experiment, measured, "Linf 0.15")
    assert "Best by validation (clean): lambda-2: 75.0 %." in markdown(experiment, measured, "clean")
    with pytest.raises(typer.BadParameter, match=r"L2 1 is not one of: robust, clean, L2 0\.75, Linf 0\.15"):
        best(experiment, measured, "L2 1")


def test_equal_ones_are_all_named_and_what_has_not_run_is_not_ranked(tmp_path):
    equal = {**PROXIES, (2, 2): (0.4, 0.4), (2, 1): (0.4, 0.4)}
    names, said = best(*swept(tmp_path, equal), "robust")
    assert names == ["lambda-1", "lambda-2"] and "lambda-1 and lambda-2, which are equal: 40.0 %." in said
    partly = {key: value for key, value in PROXIES.items() if key != (1, 2)}
    names, said = best(*swept(tmp_path, partly), "robust")
    assert names == ["lambda-2"] and said.endswith("lambda-2: 35.0 %. Not all seeds have run of lambda-1.")
    assert "| lambda-1 | 70.0 (one seed) |" in markdown(*swept(tmp_path, partly))
    names, said = best(*swept(tmp_path, {key: PROXIES[key] for key in [(1, 1), (1, 2), (2, 1)]}), "robust")
    assert names == [] and said == "Best by validation: 1 of 3 classifiers have run with all seeds."
    assert markdown(*swept(tmp_path, {})).splitlines()[-3] == "Percent; nothing has run yet; 2 seeds."
    first = {key: value for key, value in PROXIES.items() if key[1] == 1}
    assert "under APGD (clean: all of them); 1 of 2 seeds." in markdown(*swept(tmp_path, first))


@pytest.mark.parametrize("key", ["dataset", "prepare.validation_fraction", "validation.images"])
def test_none_is_the_best_of_what_was_measured_on_other_images(tmp_path, key):
    values = {
        "dataset": ["digits", "cifar10"],
        "prepare.validation_fraction": [0.1, 0.2],
        "validation.images": [10, 20],
    }
    experiment, _ = swept(tmp_path, {}, grid={key: values[key]})
    measured = {
        run: {"training": {"validation": {"clean": 1.0}, "proxy": {"L2 0.75": 0.5}}} for run in experiment.params
    }
    assert best(experiment, measured, "robust") == (
        [], "Best by validation: none, as the classifiers differ in dataset, prepare or validation."
    )  # fmt: skip


def test_a_classifier_or_one_of_its_runs_is_chosen():
    experiment = read_experiment(ROOT / "experiments/digits_rivals.yaml", "full", [])
    chosen = experiment.only(["cm", "sbg-seed3408"])
    assert set(chosen.params) == {*experiment.runs["cm"], "sbg-seed3408"}
    assert chosen.runs == {"cm": experiment.runs["cm"], "sbg": ["sbg-seed3408"]}
    assert {row.classifier for row in chosen.rows} <= {"cm", "sbg"}
    assert list(experiment.only(["17", "0"]).params) == ["oi-seed3407", "sbg-seed3408"]
    with pytest.raises(typer.BadParameter, match=r"sbg-seed1 is not one of: .*sbg-seed3409.*; nor a number up to 41"):
        experiment.only(["sbg-seed1"])


DESCRIPTION = {
    "stages": ["train"],
    "params": {"train": {"epochs": 2}},
    "sizes": {"full": {}},
    "classifiers": {"cm": {"source": "cm"}, "nn": {"source": "nn"}},
}


def described(tmp_path, changes=(), **other):
    file = tmp_path / "study.yaml"
    file.write_text(written_yaml({**DESCRIPTION, **other}))
    return read_experiment(file, "full", list(changes))


def test_a_change_of_one_classifier_leaves_the_others_as_they_are(tmp_path):
    """In a section that both take from params.yaml, in one that the description lays over it, and of both."""
    experiment = described(tmp_path, ["cm:pag_score.images=7", "cm:train.epochs=9", "train.batch_size=11"])
    cm, nn = experiment.params.values()
    base = base_params()
    assert (cm["pag_score"]["images"], nn["pag_score"]["images"]) == (7, base["pag_score"]["images"])
    assert (cm["train"]["epochs"], nn["train"]["epochs"]) == (9, 2)
    assert cm["train"]["batch_size"] == nn["train"]["batch_size"] == 11


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"parms": {}}, "parms is not one of: .*parameters go below params"),
        ({"rows": {"class means": {"of": "cn"}}}, "the row class means is of cn, which is not one of: cm, nn"),
    ],
)
def test_a_wrong_key_of_a_description_is_refused(tmp_path, other, words):
    with pytest.raises(typer.BadParameter, match=words):
        described(tmp_path, **other)
    with pytest.raises(typer.BadParameter, match=r"no description .*missing\.yaml"):
        read_experiment(tmp_path / "missing.yaml", "full", [])


@pytest.mark.parametrize("change", ["seed=5", "cm:seed=5"])
def test_a_seed_is_not_set_where_the_description_has_seeds(tmp_path, change):
    with pytest.raises(typer.BadParameter, match=r"has seeds of its own, 1, 2; .*--only NAME-seed1"):
        described(tmp_path, [change], seeds=[1, 2])
    assert {plain["seed"] for plain in described(tmp_path, ["seed=5"]).params.values()} == {5}


def test_the_baseline_is_called_what_it_is(tmp_path):
    attacked = described(tmp_path, stages=["autoattack"])
    assert [row.label for row in attacked.rows] == ["vanilla", "cm", "nn"]
    trained = described(tmp_path, ["baseline_method=at"], stages=["autoattack"])
    assert [row.label for row in trained.rows] == ["AT baseline", "cm", "nn"]


def test_a_table_says_what_is_not_the_descriptions():
    file = ROOT / "experiments/tables/table_1.yaml"
    plain = markdown(read_experiment(file, "mini", []), {})
    assert "Changed" not in plain and "only:" not in plain
    changed = read_experiment(file, "mini", ["train.epochs=3", "resnet_sbg:lambda=0.5"]).only(["resnet_sbg"])
    lines = markdown(changed, {}).splitlines()
    assert "Changed from the description: train.epochs=3, resnet_sbg:lambda=0.5." in lines
    assert "Of its classifiers and runs only: resnet_sbg." in lines
