"""What a stage that runs by hand depends on, and where it finds what nobody's stage made."""

import dataclasses

import pytest

from experiments import by_hand
from experiments.by_hand import ByHand
from experiments.described_stages import given_to, inputs_of
from experiments.description import base_params, read_experiment
from pag_core.errors import ParamsError
from tests.samples import ROOT


@pytest.fixture
def opened(tmp_path):
    """`opened(image_folder="/x")`: the stages of an experiment of small parameters, with one fingerprint of all code."""

    def make(**changes):
        params = {**base_params(), "dataset": "image_folder", **changes}
        return ByHand(params, tmp_path / "work", fingerprint=lambda program: "code")

    return make


@pytest.fixture
def ran(monkeypatch):
    """The folders in which stages were started; none of them does anything."""
    folders = []

    def start(command, folder, **environment):
        folders.append(folder)
        return 0

    monkeypatch.setattr(by_hand, "run_program", start)
    return folders


def test_changed_images_make_another_run_of_all_that_follows(opened, tmp_path):
    """Also behind links, as data on another disk often lies."""
    images = tmp_path / "images"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").write_bytes(b"one")
    (images / "train").mkdir(parents=True)
    (images / "train/cat").symlink_to(tmp_path / "elsewhere")
    stages = ("prepare", "train", "autoattack")

    def folders():
        experiment = opened(image_folder=str(images))
        return [experiment.folder(stage) for stage in stages]

    before = folders()
    assert folders() == before
    (tmp_path / "elsewhere/1.png").write_bytes(b"two")
    changed = folders()
    assert not {*before} & {*changed}
    (tmp_path / "elsewhere/1.png").write_bytes(b"one")
    assert folders() == before


def test_images_that_were_arranged_are_known_by_their_place(opened, tmp_path):
    images = tmp_path / "images-1234"
    images.mkdir()
    (images / "origin.json").touch()
    before = opened(image_folder=str(images)).folder("prepare")
    (images / "1.png").write_bytes(b"one")
    assert opened(image_folder=str(images)).folder("prepare") == before


def test_a_diffusion_model_of_the_users_is_found_and_known_by_its_content(opened, ran, tmp_path, monkeypatch):
    """A relative path is one in the checkout, as DVC has it; that of the diffusion stage is no model of the user's."""
    checkout = tmp_path / "checkout"
    (checkout / "data/pretrained").mkdir(parents=True)
    (checkout / "data/pretrained/weights.npz").write_bytes(b"one")
    monkeypatch.setattr(by_hand, "CHECKOUT", checkout)
    stages = opened(diffusion_checkpoint="data/pretrained")
    stages.make("sbg")
    link = stages.folder("sbg") / "data/pretrained"
    assert ran[-1] == stages.folder("sbg") and (link / "weights.npz").read_bytes() == b"one"
    assert not any(folder.name.startswith("diffusion") for folder in ran)
    (checkout / "data/pretrained/weights.npz").write_bytes(b"two")
    assert opened(diffusion_checkpoint="data/pretrained").folder("sbg") != stages.folder("sbg")
    own = opened(diffusion_checkpoint="data/diffusion")
    assert given_to(own.stages, "sbg", own.params) == [] and "diffusion" in inputs_of(own.stages, "sbg").values()


def test_other_datasets_do_not_depend_on_the_folder_of_images(opened, ran, tmp_path):
    (tmp_path / "1.png").write_bytes(b"one")
    stages = opened(dataset="digits", image_folder=f"../{tmp_path.name}")
    stages.make("prepare")
    assert len(ran) == 1 and stages.contents == {}


def test_what_the_user_gave_is_looked_at_once_for_all_runs(opened, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(by_hand, "file_digest", lambda file: looked.append(file) or "digest")
    (tmp_path / "given").mkdir()
    (tmp_path / "given/1.png").write_bytes(b"one")
    given = {**base_params(), "dataset": "image_folder", "image_folder": str(tmp_path / "given")}
    runs = {f"sbg-seed{seed}": {**given, "seed": seed} for seed in (1, 2, 3)}
    experiment = read_experiment(ROOT / "experiments/digits_rivals.yaml", "full", ["processes=1"])
    assert by_hand.opened_by_hand(dataclasses.replace(experiment, params=runs), tmp_path / "work") == {}
    assert looked == [tmp_path / "given/1.png"]


def test_a_link_of_another_checkout_is_made_anew(opened, ran, tmp_path, monkeypatch):
    checkouts = [tmp_path / name for name in ("first", "second")]
    for checkout in checkouts:
        (checkout / "data/pretrained").mkdir(parents=True)
        (checkout / "data/pretrained/weights.npz").write_bytes(b"one")
        monkeypatch.setattr(by_hand, "CHECKOUT", checkout)
        stages = opened(diffusion_checkpoint="data/pretrained")
        stages.make("sbg")
        assert (stages.folder("sbg") / "data/pretrained").readlink() == checkout / "data/pretrained"
    assert len({*ran}) == 3


def test_a_path_that_leads_out_of_the_folder_of_a_stage_is_refused(opened, ran):
    with pytest.raises(ParamsError, match=r"\.\./pretrained leads out of .* an absolute path: /"):
        opened(diffusion_checkpoint="../pretrained").make("sbg")
    assert [folder.name.split("-")[0] for folder in ran] == ["prepare", "check"]


def test_a_parameter_that_a_stage_does_not_read_runs_the_check_alone_again(opened, tmp_path):
    """The check reads them all, but nothing is made from what it writes; what it looked at depends on what is wanted."""
    params = base_params()
    runs = [
        opened(),
        opened(figures={**params["figures"], "images": 1}),
        ByHand(opened().params, tmp_path / "work", lambda program: "code", wanted=("train",)),
    ]
    for stage in ("prepare", "diffusion", "sbg", "train", "autoattack", "baseline_autoattack"):
        assert len({run.folder(stage) for run in runs}) == 1
    assert len({run.folder("check") for run in runs}) == 3


def test_the_check_runs_before_all_that_runs_long_and_knows_what_is_wanted(opened, ran, monkeypatch, tmp_path):
    told = []
    start = by_hand.run_program
    monkeypatch.setattr(
        by_hand, "run_program", lambda *given, **environment: told.append(environment) or start(*given, **environment)
    )
    ByHand(opened().params, tmp_path / "work", lambda program: "code", wanted=("train",)).make("train")
    assert [folder.name.split("-")[0] for folder in ran] == ["prepare", "check", "diffusion", "sbg", "train"]
    assert {told["PAG_STAGES"] for told in told} == {"prepare check train diffusion sbg"}
