"""Pictures drawn by the networks of an experiment's runs: pushed images (Fig. 5, 9 to 12), and gradients (Fig. 7, 8)."""

import statistics
from dataclasses import dataclass

import torch
import typer

from experiments.finished import Finished, Model, models_of
from experiments.plots import Drawn
from pag_core.classifiers.building import load_classifier
from pag_core.classifiers.normalization import NormalizedClassifier
from pag_core.compute.device import prepare_device
from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Dataset, read_dataset
from pag_core.diffusion.network import load_noise_predictor
from pag_core.evaluation.pgd import targeted_images
from pag_core.figures.gradient_sources import gradient_sheet
from pag_core.figures.labels import norm_and_radius, norm_label, settings_by_norm
from pag_core.figures.palette import MOST_CLASSES, shown_classes
from pag_core.figures.targeted_blocks import targeted_blocks
from pag_core.figures.targeted_pgd import targeted_pgd
from pag_core.gradient_store.store import open_gradients
from pag_core.gradients.score_based import averaged_gradients, drawn_noise
from pag_core.gradients.sources import SOURCES
from pag_core.objective.input_gradient import input_gradients
from pag_core.params.sections import Params
from pag_core.params.values import radius_value
from pag_core.pipeline.places import DIFFUSION, classifier_place, dataset_place, gradients_place


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
        place = classifier_place("baseline" if model.baseline else "classifier")
        return load_classifier(self.finished.output(model.run, str(place)), self.dataset, self.device)[0]

    def pushed(self, model: Model) -> torch.Tensor:
        """The images pushed towards the classes that a picture shows, as `figures` says: [B, classes, C, H, W]."""
        ((norm, radius),) = self.params.figures.targeted_radius.items()
        return targeted_images(
            self.network(model),
            self.images,
            min(self.dataset.classes, MOST_CLASSES),
            norm=norm,
            radius=radius_value(radius),
            steps=self.params.figures.targeted_steps,
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
    dataset = read_dataset(finished.output(first.run, str(dataset_place(params.dataset))))
    labels = dataset.splits["test"].labels
    if outside := [index for index in chosen if not 0 <= index < len(labels)]:
        raise typer.BadParameter(f"{outside[0]} is not one of {len(labels)} test images", param_hint="--test-image")
    of_classes = [int((labels == label).nonzero()[0]) for label in range(min(dataset.classes, MOST_CLASSES))]
    indices = torch.tensor(chosen or (of_classes if each_class else [0]))
    return Opened(finished, models, params, dataset, indices, prepare_device(params.device, params.threads))


def draw_lambda(several: list[Finished], chosen: list[int]) -> Drawn:
    """Images pushed by the classifiers of a sweep, and beside each row how robust it is (Fig. 5)."""
    shown = opened(several, chosen)
    ((norm, radius),) = shown.params.figures.targeted_radius.items()
    figure = targeted_pgd(
        shown.images.cpu(),
        shown.labels,
        {_with_robustness(shown, label): shown.pushed(model).cpu() for label, model in shown.models.items()},
        class_names=shown.dataset.class_names,
        norm=norm,
        radius=radius,
        steps=shown.params.figures.targeted_steps,
    )
    rows = ", ".join(shown.models)
    caption = f"Images pushed towards each class by targeted PGD ({norm} {radius}), from top to bottom: {rows}."
    return Drawn(figure, [caption, shown.caption(), _said_of_robustness(shown)])


def draw_targeted(several: list[Finished], chosen: list[int]) -> Drawn:
    """Test images pushed towards each class, a block for each row of the experiment (Fig. 9 to 12)."""
    shown = opened(several, chosen, each_class=True)
    ((norm, radius),) = shown.params.figures.targeted_radius.items()
    figure = targeted_blocks(
        shown.images.cpu(),
        shown.labels,
        {label: shown.pushed(model).cpu() for label, model in shown.models.items()},
        class_names=shown.dataset.class_names,
        norm=norm,
        radius=radius,
        steps=shown.params.figures.targeted_steps,
    )
    caption = f"Images pushed towards each class by targeted PGD ({norm} {radius}), by: {', '.join(shown.models)}."
    return Drawn(figure, [caption, shown.caption()])


def draw_timesteps(several: list[Finished], chosen: list[int], timesteps: list[int]) -> Drawn:
    """Gradients of Eq. 8 at several noise levels (Fig. 8): those that a row was trained with, and `timesteps`.

    Beside those of a row is how robust it is. All levels have the same noise. Raises BadParameter for a level that the
    diffusion model was not trained for.
    """
    shown = opened(several, chosen)
    trained = {model.params.sbg.timesteps: label for label, model in shown.models.items() if _is_score_based(model)}
    if not trained:
        raise typer.BadParameter(f"no finished run of {shown.finished.experiment.name} has the source sbg")
    params = next(model.params for model in shown.models.values() if _is_score_based(model))
    run = next(model.run for model in shown.models.values() if _is_score_based(model))
    place = shown.finished.output(run, str(DIFFUSION))
    predictor, _ = load_noise_predictor(place, shown.dataset, shown.device)
    low, high = predictor.timesteps
    rows = {}
    for level in sorted({*(levels[0] for levels in trained if len(levels) == 1), *timesteps}):
        if not low <= level <= high:
            raise typer.BadParameter(
                f"{level} is not among the noise levels {low} to {high} of the diffusion model; "
                "diffusion.timestep_window: null trains it for all",
                param_hint="--timestep",
            )
        sbg = params.sbg.model_copy(update={"timesteps": (level,)})
        noise = drawn_noise(shown.images.shape, sbg, generator(shown.device, params.seed, "figure of noise levels"))
        count, _ = shown_classes(shown.dataset.classes)
        classes = torch.arange(count, device=shown.device).expand(len(shown.indices), count)
        label = trained.get((level,))
        name = f"t = {level}" if label is None else _with_robustness(shown, label, f"t = {level}")
        rows[name] = averaged_gradients(predictor, shown.images, sbg, noise, classes)
    _, remark = shown_classes(shown.dataset.classes)
    figure = gradient_sheet(shown.dataset, shown.indices, rows, title=f"Score-based gradients by noise level{remark}")
    caption = f"Gradients of Eq. 8 at several noise levels t, the mean of draws of noise: {params.sbg.draws}."
    return Drawn(figure, [caption, shown.caption(), _said_of_robustness(shown)])


def draw_sources(several: list[Finished], chosen: list[int]) -> Drawn:
    """Target gradients of every source, and input-gradients of the adversarially trained rows (Fig. 7)."""
    shown = opened(several, chosen)
    dataset, indices, cpu = shown.dataset, shown.indices, torch.device("cpu")
    count, remark = shown_classes(dataset.classes)
    classes = torch.arange(count).expand(len(indices), count)
    rows = {}
    for name, source in SOURCES.items():
        if name != "none" and source.store is not None:
            made = source.store(
                dataset, shown.params, {"test": dataset.splits["test"].images[: int(indices.max()) + 1]}
            )
            rows[source.title] = made.gradients(dataset, "test", cpu)(indices, classes)
    for model in shown.models.values():
        if _is_score_based(model):
            place = shown.finished.output(model.run, str(gradients_place(model.params.source)))
            rows[SOURCES[model.params.source].title] = open_gradients(place, dataset, "test", cpu)(indices, classes)
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


def _is_score_based(model: Model) -> bool:
    return model.kind.source in ("sbg", "sbg_online")


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
