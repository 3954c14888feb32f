"""Names as a reader meets them in figures and on the page: methods, controls, the experiment's model and its baseline."""

from dataclasses import dataclass

from pag_core.gradients.sources import source_of
from pag_core.params.sections import Params
from pag_core.params.values import Control, MethodName, is_imported


@dataclass(frozen=True)
class Method:
    """A method as readers meet it: `title` in figures and tables, `phrase` within a sentence.

    `markers` of plots are those of the norms of its attack that a plot tells apart, or one for `""`.
    """

    title: str
    phrase: str
    markers: dict[str, str]


METHODS: dict[MethodName, Method] = {
    "standard": Method("cross-entropy", "cross-entropy", {"": "o"}),
    "at": Method("AT", "adversarial training", {"L2": "s", "Linf": "^"}),
    "trades": Method("TRADES", "TRADES", {"": "D"}),
    "gradient_norm": Method("gradient norm", "a penalty on the norm of the input-gradient", {"": "X"}),
    "gaussian_noise": Method("Gaussian noise", "Gaussian noise on the images", {"": "h"}),
}


@dataclass(frozen=True)
class ControlMark:
    """A control of target gradients as readers meet it: `phrase` after the source, and a marker of its own in plots."""

    phrase: str
    marker: str


CONTROLS: dict[Control, ControlMark] = {
    "other_image": ControlMark("of another image", "P"),
    "other_class": ControlMark("of another class", "v"),
    "shuffled_pixels": ControlMark("in shuffled pixels", "*"),
}


def source_label(source: str, control: Control | None) -> str:
    """What was aligned with: `SBG`, or as a control `SBG of another class`."""
    # the name of a function of the user's is as it is
    name = source if "." in source else source.upper()
    return name if control is None else f"{name} {CONTROLS[control].phrase}"


def model_label(source: str, lambda_: float, method: MethodName = "standard", control: Control | None = None) -> str:
    """The experiment's model, its method, source and lambda: `model (SBG, λ 3)`, `model (AT + SBG, λ 3)`, `model (AT)`.

    Without method and alignment it is `model (no alignment)`.
    """
    parts = [METHODS[method].title] if method != "standard" else []
    if source != "none" and lambda_ != 0:
        parts.append(f"{source_label(source, control)}, λ {lambda_:g}")
    return f"model ({' + '.join(parts) or 'no alignment'})"


def label_of(params: Params) -> str:
    """The experiment's model as `model_label` has it; one that was trained elsewhere is `model (imported)`."""
    if is_imported(params.classifier_checkpoint):
        return "model (imported)"
    return model_label(source_of(params), params.lambda_, params.method, params.control)


def baseline_label(method: MethodName) -> str:
    """The classifier that stands beside the model: `vanilla baseline`, `AT baseline`."""
    return f"{METHODS[method].title if method != 'standard' else 'vanilla'} baseline"


def seeds_label(count: int) -> str:
    """How many seeds a number stands for: `one seed`, `3 seeds`."""
    return "one seed" if count == 1 else f"{count} seeds"
