"""A classifier of plain torch under the whole suite: imported, attacked, shown, and attacked outside."""

import hashlib
import sys

import pytest
import torch
import zarr
from pyautoattack.autoattack import AutoAttack
from torch import nn

from pag_core.evaluation.autoattack import library_seed, shard_seed
from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run

pytestmark = pytest.mark.slow

MEAN, DEVIATION, IMAGES, SEED, RADIUS, WIDTH = 0.31, 0.37, 6, 3407, 0.5, 24
IMPORT = (sys.executable, "-m", "pag_core.exchange.import_classifier", "net.pth")
OPTIONS = ("--options", f"{{width: {WIDTH}, depth: 1}}", "--mean", str(MEAN), "--std", str(DEVIATION))
CHECKPOINT = "classifier_checkpoint=data/pretrained_classifier"
TRAINING = {"train", "diffusion", "sbg", "sbg_online", "heuristic@cm", "heuristic@oi", "heuristic@nn"}


class Block(nn.Module):
    """A residual block, written for this file."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.gain = nn.Parameter(torch.tensor([0.3]))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.silu(self.first(nn.functional.silu(features)))
        return features + self.gain * self.second(inner)  # type: ignore[no-any-return]


def network() -> nn.Module:
    """What `small_resnet` of one stage is."""
    pooled = (nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), Block(), *pooled)


def splits(project: ProjectCopy) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images float in [0, 1] and labels of each split, read by Zarr alone."""
    root = zarr.open_group(project.path / "data/digits.zarr", mode="r")
    return {
        name: (torch.from_numpy(root[f"{name}/images"][:]) / 255, torch.from_numpy(root[f"{name}/labels"][:]))
        for name in ("train", "validation", "test")
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectCopy:
    """A project beside which somebody trained a network in a loop of their own."""
    chosen = {
        "seed": SEED, "autoattack.images": IMAGES, "autoattack.images_per_shard": IMAGES, "autoattack.batch_size": IMAGES,
        "autoattack.radii": {"L2": [str(RADIUS)]}, "masking.images": 3, "foolbox.images": 2,
    }  # fmt: skip
    copy = ProjectCopy(tmp_path_factory.mktemp("imported"), {**SMALL, **chosen})
    copy.stage("prepare")
    torch.manual_seed(0)
    model, (images, labels) = network(), splits(copy)["train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(40):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model((images[rows] - MEAN) / DEVIATION), labels[rows]).backward()
            optimizer.step()
    torch.save({"net": nn.DataParallel(model).state_dict(), "acc": 90.0}, copy.path / "net.pth")
    return copy


@pytest.fixture(scope="module")
def shown(project: ProjectCopy) -> list[str]:
    """The stages that ran for the page of the imported network."""
    done = project.run(*IMPORT, "--arch", "small_resnet", *OPTIONS, "--accuracy", "0.8")
    assert "weights: those under net.module.\n" in done.stdout, done.stdout
    return stages_run(project.run("dvc", "exp", "run", "-S", CHECKPOINT).stdout)


def test_nothing_is_trained_but_the_baseline(project: ProjectCopy, shown: list[str]) -> None:
    assert not TRAINING & set(shown) and "baseline" in shown and "report" in shown
    assert not any(
        (project.path / place).exists() for place in ("data/classifier", "data/diffusion", "curves/classifier")
    )
    assert stages_run(project.run("dvc", "repro").stdout) == []


def test_autoattack_judges_each_image_as_it_does_outside(project: ProjectCopy, shown: list[str]) -> None:
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network((images - MEAN) / DEVIATION)  # type: ignore[no-any-return]

    model = Normalized()
    state = torch.load(project.path / "net.pth", weights_only=True)["net"]
    model.network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    model.eval()
    images, labels = (part[:IMAGES] for part in splits(project)["test"])
    seed = library_seed(shard_seed(SEED, "L2", str(RADIUS), 0))
    attack = AutoAttack(model, norm="L2", eps=RADIUS, seed=seed, device="cpu", version="standard")
    found, _ = attack.run_standard_evaluation(images, labels, batch_size=IMAGES)
    with torch.no_grad():
        clean, robust = ((model(part).argmax(1) == labels) for part in (images, found))
    measured = project.metrics("details/autoattack")["model"]
    assert measured["verdicts"][f"L2 {RADIUS}"] == "".join(str(int(stands)) for stands in clean & robust)
    assert measured["clean"] == clean.double().mean().item()
    assert 0 < int(robust.sum()) < int(clean.sum()), "a radius at which nothing or everything falls proves little"


def test_the_page_says_where_it_comes_from_and_no_more(project: ProjectCopy, shown: list[str]) -> None:
    page = (project.path / "report.html").read_text(encoding="utf-8")
    digest = hashlib.sha256((project.path / "net.pth").read_bytes()).hexdigest()
    assert f"imported from net.pth (SHA-256 {digest})" in page and "Which images it was trained on is not known" in page
    assert "<span>λ</span>" not in page and "source of target gradients" not in page
    assert "<h2>Validation</h2>" in page and "Training, cross-entropy" not in page
    details = project.metrics("details/training")
    images, labels = splits(project)["validation"]
    assert details["train"] == {} and 0.8 < details["validation"]["clean"] <= 1 and len(images) == len(labels)


def test_it_can_be_exported(project: ProjectCopy, shown: list[str]) -> None:
    project.run(sys.executable, "-m", "pag_core.exchange.export", "exported", forked=False)
    card = (project.path / "exported/README.md").read_text(encoding="utf-8")
    assert (
        "imported from net.pth, its training images unknown (the classifier" in card
        and "digits, of its training unknown" in card
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((sys.executable, "stages/train.py"), "classifier_checkpoint is data/nowhere, which is measured in place of"),
        (
            ("dvc", "repro", "validation"),
            "classifier_checkpoint is data/nowhere, which is not there; make it by python -m",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(project: ProjectCopy, command: tuple[str, ...], words: str) -> None:
    before = (project.path / "params.yaml").read_bytes()
    project.set({"classifier_checkpoint": "data/nowhere"})
    done = project.run(*command, check=False)
    (project.path / "params.yaml").write_bytes(before)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert words in done.stderr, done.stderr


def test_a_file_with_code_leaves_nothing(project: ProjectCopy) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(project.path / "was run"), "w"))

    torch.save({"net": network().state_dict(), "more": Evil()}, project.path / "evil.pth")
    command = (*IMPORT[:-1], "evil.pth", "data/evil", "--arch", "small_resnet", *OPTIONS)
    done = project.run(*command, check=False)
    assert done.returncode == 1 and "nothing of it was run" in done.stderr and "Traceback" not in done.stderr
    assert not (project.path / "was run").exists() and not (project.path / "data/evil").exists()
