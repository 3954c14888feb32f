"""A diffusion model of guided_diffusion's own code: imported, distilled, and compared with a plain script."""

import sys
from pathlib import Path

import pytest
import torch
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.unet import UNetModel

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.gradient_store.store import GradientStore
from tests.fixtures.project_copy import SMALL, ProjectCopy

pytestmark = pytest.mark.slow

CLASSES, TIMESTEP, SEED, HELD_OUT = 10, 300, 3407, 6
IMPORT = (sys.executable, "-m", "pag_core.exchange.import_diffusion")


def model() -> UNetModel:
    """As create_model makes it, which is for colour images alone."""
    return UNetModel(
        image_size=8, in_channels=1, model_channels=32, out_channels=1, num_res_blocks=1, attention_resolutions=(2,),
        channel_mult=(1, 1), num_classes=CLASSES + 1, num_heads=4, use_scale_shift_norm=True,
    )  # fmt: skip


def noising() -> GaussianDiffusion:
    return create_gaussian_diffusion(steps=1000, noise_schedule="linear", rescale_timesteps=True)


def train(dataset: Dataset, folder: Path) -> None:
    """A short plain training, whose label 0 is dropped for no class; writes the weights and their moving average."""
    torch.manual_seed(0)
    network, process = model(), noising()
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    data = dataset.splits["train"]
    for _ in range(150):
        rows = torch.randint(len(data), (64,))
        # in this model label 0 is no class, and class c has the label c + 1
        labels = torch.where(torch.rand(64) < 1 / CLASSES, 0, data.labels[rows] + 1)
        images = data.images[rows] / 255 * 2 - 1
        timesteps = torch.randint(250, 351, (64,))
        loss = process.training_losses(network, images, timesteps, model_kwargs={"y": labels})["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, tensor in network.state_dict().items():
            average[name].mul_(0.95).add_(tensor, alpha=0.05)
    torch.save(network.state_dict(), folder / "model000150.pt")
    torch.save(average, folder / "ema_0.95_000150.pt")
    # as a script of one's own keeps them, from several GPUs
    parts = {"model": network.state_dict(), "ema": {f"module.{name}": tensor for name, tensor in average.items()}}
    torch.save({**parts, "optimizer": optimizer.state_dict(), "step": 150}, folder / "wrapped.pt")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectCopy:
    chosen = {
        "gradient_store.dtype": "float32",
        "gradient_store.held_out_images": HELD_OUT,
        "seed": SEED,
        "sbg.timestep": TIMESTEP,
    }
    copy = ProjectCopy(tmp_path_factory.mktemp("teacher"), {**SMALL, **chosen, "prepare.images_per_class": 40})
    copy.stage("prepare")
    train(read_dataset(copy.path / "data/digits.zarr"), copy.path)
    return copy


def plain_gradients(path: Path, dataset: Dataset) -> torch.Tensor:
    """Eq. 8 of the held-out images, by the library's model and noising alone; only the noise is the project's."""
    network, process = model().eval(), noising()
    state = torch.load(path, weights_only=True)
    state = {name.removeprefix("module."): tensor for name, tensor in state.get("ema", state).items()}
    network.load_state_dict(state)
    images = dataset.splits["test"].images[:HELD_OUT].float() / 255 * 2 - 1
    noise = torch.randn(images.shape, generator=generator("cpu", SEED, "distillation", "test", 0))
    timesteps = torch.full((HELD_OUT,), TIMESTEP)
    noised = process.q_sample(images, timesteps, noise)
    with torch.no_grad():
        predicted = [network(noised, timesteps, torch.full((HELD_OUT,), label)) for label in range(CLASSES + 1)]
    return torch.stack([predicted[0] - conditional for conditional in predicted[1:]], 1)


@pytest.mark.parametrize(
    ("name", "choice", "said"),
    [
        ("model000150.pt", (), "weights: the whole file"),
        ("ema_0.95_000150.pt", (), "weights: the whole file"),
        ("wrapped.pt", ("--weights", "ema.module"), "weights: those under ema.module.\nleft out: model, optimizer\n"),
    ],
)
def test_the_distilled_gradients_are_those_of_a_plain_script(
    project: ProjectCopy, name: str, choice: tuple[str, ...], said: str
) -> None:
    folder = f"data/{name.split('_')[0]}"
    done = project.run(*IMPORT, name, folder, "--image-size", "8", "--no-class", "0", *choice, forked=bool(choice))
    assert said in done.stdout
    assert "attention_resolutions: [4]" in done.stdout and "held_out_error_conditional: 0." in done.stdout
    assert "labels 0 to 10, as assumed: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, no class" in done.stdout
    project.set({"diffusion_checkpoint": folder})
    done = project.stage("sbg")
    assert f"{folder} comes from elsewhere" in done.stdout
    dataset = read_dataset(project.path / "data/digits.zarr")
    store = GradientStore(project.path / "data/gradients/sbg.zarr").gradients(dataset, "test", torch.device("cpu"))
    stored = store(torch.arange(HELD_OUT), torch.arange(CLASSES).expand(HELD_OUT, -1))
    expected = plain_gradients(project.path / name, dataset)
    assert stored.shape == expected.shape and expected.abs().max() > 0.01
    assert torch.allclose(stored, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--image-size", "256", "--no-class", "0"), "trained on images of 256x256 pixels, and the dataset has 8x8"),
        (("--image-size", "8"), "does not use its label"),
        (("--image-size", "8", "--no-class", "0", "--timesteps", "200"), "sbg.timestep is 300, beyond the 200"),
    ],
)
def test_what_does_not_fit_leaves_nothing(project: ProjectCopy, arguments: tuple[str, ...], words: str) -> None:
    done = project.run(*IMPORT, "model000150.pt", "data/refused", *arguments, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert words in done.stderr
    assert not (project.path / "data/refused").exists()


def test_a_model_that_predicts_no_noise_is_refused(project: ProjectCopy) -> None:
    state = torch.load(project.path / "model000150.pt", weights_only=True)
    state["out.2.bias"] += 2
    torch.save(state, project.path / "broken.pt")
    done = project.run(*IMPORT, "broken.pt", "data/refused", "--image-size", "8", "--no-class", "0", check=False)
    assert done.returncode == 1 and "worse than a prediction of zero" in done.stderr
    assert not (project.path / "data/refused").exists()
