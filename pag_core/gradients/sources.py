"""Every source of target gradients by the name that params.yaml gives it. A new source is registered here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast, get_args

from pag_core.datasets.prepared import Dataset, Split
from pag_core.gradient_store.store import SmallStore
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices, require_neighbors
from pag_core.gradients.one_image import one_image_representatives
from pag_core.params.sections import Params
from pag_core.params.values import Source as SourceName

# from the dataset, the parameters, and images by split to the store's content for those images
MakeStore = Callable[[Dataset, Params, dict[str, Split]], SmallStore]


@dataclass(frozen=True)
class Source:
    """A source as readers meet it: `title` in figures and tables, `phrase` within a sentence, `colour` in plots.

    `store` makes the store of a heuristic source (Section 4.1); None is a source whose gradients are distilled.
    """

    title: str
    phrase: str
    colour: str
    store: MakeStore | None


def _one_image(dataset: Dataset, params: Params, images: dict[str, Split]) -> SmallStore:
    chosen = one_image_representatives(dataset.splits["train"], dataset.classes, seed=params.seed)
    return SmallStore("representatives", {"representatives": chosen})


def _class_mean(dataset: Dataset, params: Params, images: dict[str, Split]) -> SmallStore:
    means = class_mean_representatives(dataset.splits["train"], dataset.classes, factor=params.cm.factor)
    return SmallStore("representatives", {"representatives": means})


def _nearest_neighbor(dataset: Dataset, params: Params, images: dict[str, Split]) -> SmallStore:
    train = dataset.splits["train"]
    if "train" in images:
        require_neighbors(train, dataset.class_names)
    samples = class_samples(train, dataset.classes, samples_per_class=params.nn.samples_per_class, seed=params.seed)
    nearest = {
        f"{split}/neighbors": nearest_neighbor_indices(part, train, samples, dataset.class_names)
        for split, part in images.items()
    }
    return SmallStore("neighbors", nearest)


# in Okabe and Ito's colours; what has no source is dark grey
SOURCES: dict[SourceName, Source] = {
    "none": Source("no target gradients", "no target gradients", "#222222", lambda *_: SmallStore("none")),
    "oi": Source("one image (OI)", "one-image gradients", "#E69F00", _one_image),
    "cm": Source("class mean (CM)", "class-mean gradients", "#56B4E9", _class_mean),
    "nn": Source("nearest neighbor (NN)", "nearest-neighbor gradients", "#009E73", _nearest_neighbor),
    "sbg": Source("score-based (SBG)", "score-based gradients", "#0072B2", None),
    "sbg_online": Source("score-based, in the step", "score-based gradients made in the step", "#CC79A7", None),
    "own": Source("own", "gradients of a function of one's own", "#D55E00", None),
}


def source_of(params: Params) -> str:
    """The name by which models of this source are told from others: that of its function where that is the user's."""
    return params.own.function or "own" if params.source == "own" else params.source


def known_as(name: str) -> Source:
    """The source of a name that `source_of` gives."""
    if name not in get_args(SourceName):
        return replace(SOURCES["own"], title=name, phrase=f"gradients of {name}")
    return SOURCES[cast(SourceName, name)]
