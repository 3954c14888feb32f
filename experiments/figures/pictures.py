"""Pictures drawn by the networks of an experiment's runs: adversarial examples (Fig. 5, 9 to 12), and gradients (Fig. 7, 8)."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from experiments.figures.models import Finished, Model, models_of
from experiments.figures.plots import Drawn
from pag_core.classifiers.building import load_classifier
from pag_core.classifiers.normalization import NormalizedClassifier
from pag_core.compute.device import prepare_device
from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.diffusion.network import NoisePredictor, load_noise_predictor
from pag_core.evaluation.attacks import norm_and_radius, norm_label, settings_by_norm
from pag_core.evaluation.pgd import targeted_images
from pag_core.figures.gradient_sources import gradient_sheet
from pag_core.figures.palette import MOST_CLASSES, shown_classes
from pag_core.figures.targeted_blocks import targeted_blocks
from pag_core.figures.targeted_pgd import targeted_pgd
from pag_core.gradient_store.store import GradientStore
from pag_core.gradients.score_based import averaged_gradients, drawn_noise
from pag_core.gradients.sources import SOURCES, known_as
from pag_core.objective.input_gradient import input_gradients
from pag_core.params.radii import radius_value
from pag_core.params.sections import Params
from pag_core.params.values import is_imported
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.paths import DIFFUSION, dataset_path, gradients_path, measured_path


@dataclass(frozen=True)
class Opened:
    """The models of one seed by their rows' labels, and the images that their pictures show.

    `indices` int64 [B] are places in the test split of `dataset`, whose images are read by the parameters `params`.
    """

    finished: Finished
    models: dict[str, Model]
    params: Params
    dataset: Dataset
    indices: torch.Tensor
    device: torch.device

    @property
    def images(self) -> torch.Tensor:
        """Float [B, C, H, W] in [0, 1], on the device."""
        return self.dataset.splits["test"].pixels(self.indices).to(self.device)

    @property
    def labels(self) -> torch.Tensor:
        """Int64 [B], on the CPU."""
        return self.dataset.splits["test"].labels[self.indices]

    def network(self, model: Model) -> NormalizedClassifier:
        """The trained network of `model`, in eval mode on the device."""
        checkpoint = model.params.classifier_checkpoint
        place = measured_path("baseline" if model.baseline else "classifier", checkpoint)
        own = model.baseline or not is_imported(checkpoint)
        found = self.finished.output(model.run, str(place)) if own else CHECKOUT / place
        return load_classifier(found, self.dataset, self.device)[0]

    def teacher(self, model: Model) -> NoisePredictor:
        """The diffusion model whose gradients `model` was trained with: that of its run, or one from elsewhere."""
        checkpoint = Path(model.params.diffusion_checkpoint)
        own = checkpoint == DIFFUSION
        # a path of the user's is relative to the checkout
        place = self.finished.output(model.run, str(checkpoint)) if own else CHECKOUT / checkpoint
        return load_noise_predictor(place, self.dataset, self.device)[0]

    def adversarial(self, model: Model) -> torch.Tensor:
        """The images attacked towards the classes that a picture shows, as `figures` says: [B, classes, C, H, W]."""
        ((norm, radius),) = self.params.figures.targeted_radius.items()
        return targeted_images(
            self.network(model),
            self.images,
            min(self.dataset.classes, MOST_CLASSES),
            norm=norm,
            radius=radius_value(radius),
            steps=self.params.figures.targeted_steps,
            batch_size=self.params.figures.batch_size,
        )

    def caption(self) -> str:
        """What every picture says of its data."""
        listed = ", ".join(str(int(index)) for index in self.indices)
        return f"{self.params.dataset}, seed {self.params.seed}; test images number {listed}."


def opened(several: list[Finished], chosen: list[int], *, each_class: bool = False) -> Opened:
    """The models of the first seed of which any has run, and test images: the `chosen`, or the first, or one of each class.

    Raises BadParameter for more than one experiment, one that has not run, and an image that does not exist.
    """
    if len(several) != 1:
        raise typer.BadParameter("pictures are drawn from one description")
    (finished,) = several
    experiment = finished.experiment
    every = {row.label: models_of(finished, row) for row in experiment.rows}
    seeds = [plain["seed"] for plain in experiment.params.values()]
    ran = {model.params.seed for models in every.values() for model in models}
    if not ran:
        raise typer.BadParameter(f"none of the runs of {experiment.name} has finished; run it first")
    seed = next(seed for seed in seeds if seed in ran)
    models = {label: model for label, found in every.items() for model in found if model.params.seed == seed}
    first = next(iter(models.values()))
    params = first.params
    dataset = read_dataset(finished.output(first.run, str(dataset_path(params.dataset))))
    labels = dataset.splits["test"].labels
    if outside := [index for index in chosen if not 0 <= index < len(labels)]:
        raise typer.BadParameter(f"{outside[0]} is not one of {len(labels)} test images", param_hint="--test-image")
    of_classes = [int((labels == label).nonzero()[0]) for label in range(min(dataset.classes, MOST_CLASSES))]
    indices = torch.tensor(chosen or (of_classes if each_class else [0]))
    return Opened(finished, models, params, dataset, indices, prepare_device(params.device, params.threads))


def draw_lambda(several: list[Finished], chosen: list[int]) -> Drawn:
    """Adversarial examples by the classifiers of a sweep, and beside each row how robust it is (Fig. 5)."""
    shown = opened(several, chosen)
    ((norm, radius),) = shown.params.figures.targeted_radius.items()
    figure = targeted_pgd(
        shown.images.cpu(),
        shown.labels,
        {_with_robustness(shown, label): shown.adversarial(model).cpu() for label, model in shown.models.items()},
        class_names=shown.dataset.class_names,
        norm=norm,
        radius=radius,
        steps=shown.params.figures.targeted_steps,
    )
    rows = ", ".join(shown.models)
    caption = f"Adversarial examples for each class by targeted PGD ({norm} {radius}), from top to bottom: {rows}."
    return Drawn(figure, [caption, shown.caption(), _said_of_robustness(shown)])


def draw_targeted(several: list[Finished], chosen: list[int]) -> Drawn:
    """Targeted adversarial examples for each class, a block for each row of the experiment (Fig. 9 to 12)."""
    shown = opened(several, chosen, each_class=True)
    ((norm, radius),) = shown.params.figures.targeted_radius.items()
    figure = targeted_blocks(
        shown.images.cpu(),
        shown.labels,
        {label: shown.adversarial(model).cpu() for label, model in shown.models.items()},
        class_names=shown.dataset.class_names,
        norm=norm,
        radius=radius,
        steps=shown.params.figures.targeted_steps,
    )
    caption = f"Adversarial examples for each class by targeted PGD ({norm} {radius}), by: {', '.join(shown.models)}."
    return Drawn(figure, [caption, shown.caption()])


def draw_timesteps(several: list[Finished], chosen: list[int], timesteps: list[int]) -> Drawn:
    """Gradients of Eq. 8 at several noise levels (Fig. 8): those that each row was trained with, and `timesteps`.

    A row's are those of its own diffusion model, and beside them is how robust it is. All have the same noise. Raises
    BadParameter for a level that no diffusion model was trained for.
    """
    shown = opened(several, chosen)
    models = {label: model for label, model in shown.models.items() if model.kind.source in ("sbg", "sbg_online")}
    if not models:
        raise typer.BadParameter(f"no finished run of {shown.finished.experiment.name} has the source sbg")
    teachers = {label: shown.teacher(model) for label, model in models.items()}
    trained = [(level, label) for label, model in models.items() for level in model.params.sbg.timesteps]
    further = {level: _first_trained_for(level, teachers) for level in timesteps if level not in dict(trained)}
    count, remark = shown_classes(shown.dataset.classes)
    classes = torch.arange(count, device=shown.device).expand(len(shown.indices), count)
    rows = {}
    for level, label in sorted([*trained, *further.items()], key=lambda line: line[0]):
        sbg = models[label].params.sbg.model_copy(update={"timesteps": (level,)})
        noise_stream = generator(shown.device, shown.params.seed, "figure of noise levels")
        noise = drawn_noise(shown.images.shape, sbg, noise_stream)
        name = f"t = {level}"
        if level not in further:
            # rows of figure_8.yaml are called by their level
            name = _with_robustness(shown, label, name if label == name else f"{name}\n{label}")
        rows[name] = averaged_gradients(teachers[label], shown.images, sbg, noise, classes)
    figure = gradient_sheet(shown.dataset, shown.indices, rows, title=f"Score-based gradients by noise level{remark}")
    draws = sorted({model.params.sbg.draws for model in models.values()})
    listed = " or ".join(map(str, draws))
    caption = f"Gradients of Eq. 8 at several noise levels t, the mean of draws of noise: {listed}."
    added = [f"t = {level} is by the diffusion model of the row {label}." for level, label in further.items()]
    return Drawn(figure, [caption, *added, shown.caption(), _said_of_robustness(shown)])


def _first_trained_for(level: int, teachers: dict[str, NoisePredictor]) -> str:
    """The first row whose diffusion model was trained for the noise level; raises BadParameter where there is none."""
    windows = {label: teacher.timesteps for label, teacher in teachers.items()}
    fitting = (label for label, (low, high) in windows.items() if low <= level <= high)
    if (label := next(fitting, None)) is None:
        listed = " or ".join(dict.fromkeys(f"{low} to {high}" for low, high in windows.values()))
        raise typer.BadParameter(
            f"{level} is not among the noise levels {listed} of the diffusion model; diffusion.timestep_window: null trains "
            "it for all",
            param_hint="--timestep",
        )
    return label


def draw_sources(several: list[Finished], chosen: list[int]) -> Drawn:
    """Target gradients of every source, and input-gradients of the adversarially trained rows (Fig. 7)."""
    shown = opened(several, chosen)
    dataset, indices, cpu = shown.dataset, shown.indices, torch.device("cpu")
    count, remark = shown_classes(dataset.classes)
    classes = torch.arange(count).expand(len(indices), count)
    rows = {}
    for name, source in SOURCES.items():
        if name != "none" and source.store is not None:
            first = dataset.splits["test"].part(slice(0, int(indices.max()) + 1))
            made = source.store(dataset, shown.params, {"test": first})
            rows[source.title] = made.gradients(dataset, "test", cpu)(indices, classes)
    rows |= _stored_gradients(shown, classes)
    for label, model in shown.models.items():
        if model.kind.method == "at" and model.kind.source == "none":
            _, rows[f"input-gradient\n{label}"] = input_gradients(
                shown.network(model),
                shown.images,
                classes.to(shown.device),
                output="log_softmax",
                differentiation="autograd",
                batch_norm="class",
                create_graph=False,
            )
    figure = gradient_sheet(dataset, indices, rows, title=f"Gradients of sources and of classifiers{remark}")
    listed = ", ".join(name.replace("\n", " of ") for name in rows)
    return Drawn(figure, [f"From top to bottom: {listed}.", shown.caption()])


def _stored_gradients(shown: Opened, classes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients in the stores of the rows; equal ones once. Where stores of a source differ, they are told apart by row.

    Raises BadParameter for a test image of which a store holds none.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for label, model in shown.models.items():
        if not _is_stored(model):
            continue
        held = model.params.gradient_store.held_out_images
        if beyond := [index for index in shown.indices.tolist() if index >= held]:
            raise typer.BadParameter(
                f"{beyond[0]} is not one of the first {held} test images, whose gradients the store of {label} holds; choose "
                "one of them, or run the experiment with more gradient_store.held_out_images",
                param_hint="--test-image",
            )
        place = shown.finished.output(model.run, str(gradients_path(model.params.source)))
        gradients = GradientStore(place).gradients(shown.dataset, "test", torch.device("cpu"))(shown.indices, classes)
        of_source = found.setdefault(known_as(model.kind.source).title, {})
        if not any(torch.equal(gradients, other) for other in of_source.values()):
            of_source[label] = gradients
    return {
        title if len(of_source) == 1 else f"{title}\n{label}": gradients
        for title, of_source in found.items()
        for label, gradients in of_source.items()
    }


def _is_stored(model: Model) -> bool:
    return model.kind.source != "none" and SOURCES[model.params.source].store is None


def _with_robustness(shown: Opened, label: str, name: str | None = None) -> str:
    """The name of a row, and below it its accuracy at each setting of AutoAttack: the mean over the seeds that have run."""
    (row,) = (row for row in shown.finished.experiment.rows if row.label == label)
    models = models_of(shown.finished, row)
    settings = [key for key in models[0].measured["autoattack"][models[0].who] if key != "clean"]
    lines = [name or label]
    for setting in (key for keys in settings_by_norm(settings).values() for key in keys):
        norm, radius = norm_and_radius(setting)
        mean = statistics.mean(model.measured["autoattack"][model.who][setting] for model in models)
        lines.append(f"{norm_label(norm)} {radius}: {100 * mean:.1f} %")
    return "\n".join(lines)


def _said_of_robustness(shown: Opened) -> str:
    rows = [row for row in shown.finished.experiment.rows if row.label in shown.models]
    models = {row.label: models_of(shown.finished, row) for row in rows}
    counts = sorted({model.measured["autoattack"]["images"] for found in models.values() for model in found})
    seeds = {label: ", ".join(str(model.params.seed) for model in found) for label, found in models.items()}
    (first, *others) = {*seeds.values()}
    over = "; ".join(f"{label}: {listed}" for label, listed in seeds.items()) if others else first
    return (
        f"Beside a row: accuracy under AutoAttack at each radius, {' or '.join(map(str, counts))} test images, mean over seeds "
        f"{over}."
    )
