"""Which families of timm the adjoint takes, how exactly and how fast: against one `autograd.grad` for each class."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from benchmarks.adjoint_rules import timed_in_turns
from benchmarks.interleaved import prepare
from benchmarks.measurement import header
from benchmarks.pag_step import CHEAPEST, SEED, Batch, StepSize, TrainingStep, Variant, build_batch, pag_loss
from benchmarks.plain_methods import class_loop_loss
from pag_core.classifiers.architectures import TIMM
from pag_core.classifiers.building import build_classifier
from pag_core.errors import AdjointUnavailable, NotTwiceDifferentiable, PagError
from pag_core.objective.adjoint.tracing import REMEDY
from pag_core.pipeline.artifacts import read_json, write_json
from pag_core.pipeline.stage import run

RESULTS = Path(__file__).parent / "results" / "timm_families.json"
# of each family its smallest that is meant for more than tests
NETWORKS = (
    "resnet10t", "resnetv2_18", "skresnet18", "regnetx_002", "dla46_c", "dpn48b", "ese_vovnet19b_slim_dw",
    "cs3darknet_s", "nf_regnet_b0", "efficientnet_lite0", "mnasnet_small", "mobilenetv2_035", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035", "ghostnet_050", "repvgg_a0", "convnext_atto", "convnextv2_atto",
    "inception_next_atto", "poolformer_s12", "edgenext_xx_small", "efficientformer_l1", "mobilevit_xxs",
    "efficientvit_b0", "levit_128s", "vit_tiny_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "pvt_v2_b0",
    "visformer_tiny", "gmlp_ti16_224", "resmlp_12_224",
)  # fmt: skip
Loss = Callable[[nn.Module, Batch], torch.Tensor]
SIDES = (32, 64)
CLASSES, DRAWN = 10, 3
IMAGES, IMAGES_EXACT = 16, 4
NOISE = 0.02  # deviation of what is added to each parameter
SHARE = 1e-2  # of the norm of all gradients: the least that one parameter's is held against
LONGEST = 8.0  # seconds of a step that is still timed
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """What was found of a network at one size of image.

    `way` is what computes its input-gradients: "adjoint", "autograd" or None. `reason` says why it is not the adjoint, or why
    not autograd as the network is.
    `error` is `gradient_error`; `speedup` how many times as fast as the loop a step is: median, lowest, highest of the rounds.
    """

    network: str
    side: int
    millions: float | None = None
    way: str | None = None
    reason: str = ""
    error: float | None = None
    speedup: tuple[float, float, float] | None = None
    not_timed: str = ""


def build(network: str, size: StepSize) -> nn.Module:
    """timm's `network` in train mode with random weights, the same each time.

    Noise is added to all parameters: a branch that begins at zero would hide what the adjoint makes of it.
    """
    torch.manual_seed(SEED)
    shape = (3, size.side, size.side)
    classifier = build_classifier(TIMM + network, width=None, activation=None, image_shape=shape, classes=size.classes)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    return classifier.train()


def loop_loss(classifier: nn.Module, batch: Batch) -> torch.Tensor:
    """The loop over classes; fused attention, which has no second derivative, is written out for it."""
    with sdpa_kernel(SDPBackend.MATH):
        return class_loop_loss(classifier, batch)


class _Hardsigmoid(TorchFunctionMode):
    """Inside, hardsigmoid is written out: torch has no second derivative of it."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if function is F.hardsigmoid:
            return F.relu6(arguments[0] + 3) / 6
        return function(*arguments, **(keywords or {}))


def written_out_loss(classifier: nn.Module, batch: Batch) -> torch.Tensor:
    """As `loop_loss`, with hardsigmoid written out."""
    with _Hardsigmoid():
        return loop_loss(classifier, batch)


def gradient_error(build_network: Callable[[], nn.Module], batch: Batch, reference: Loss = loop_loss) -> float:
    """The largest |g - r| / |r| of a parameter in float64: g of the adjoint in the meaning `class`, r of `reference`.

    Where |r| is less than a hundredth of that of all parameters together, as of a bias before batch-norm, against that.
    """
    batch = replace(batch, images=batch.images.double(), targets=batch.targets.double())
    found: list[list[torch.Tensor]] = []
    for loss in (pag_loss(Variant("class")), reference):
        classifier = build_network().double()
        torch.manual_seed(SEED)  # dropout
        loss(classifier, batch).backward()
        found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in classifier.parameters()])
    whole = torch.stack([r.norm() for r in found[1]]).norm()
    errors = [(g - r).norm() / torch.maximum(r.norm(), SHARE * whole) for g, r in zip(*found, strict=True)]
    return float(torch.stack(errors).max())


def step_speedup(
    step: Callable[[], Any], loop: Callable[[], Any], rounds: int
) -> tuple[tuple[float, float, float] | None, str]:
    """Of two steps that have run once: how many times as fast `step` is, or the reason why it was not timed."""
    start = time.process_time()
    loop()
    if (seconds := time.process_time() - start) > LONGEST:
        return None, f"a step of the loop takes {seconds:.0f} s"
    measured = timed_in_turns({"step": step, "loop": loop}, rounds).speedup("step", "loop", "the loop over classes")
    assert measured.value is not None
    return (measured.value, *(measured.spread or (measured.value, measured.value))), ""


def in_few_words(error: Exception) -> str:
    """What an error says, without the remedy and what the project says around a library's."""
    whole = str(error.__cause__ or error).strip() or type(error).__name__
    return whole.splitlines()[0].split(f"; {REMEDY}")[0]


def measure(network: str, side: int, rounds: int, build_network: Callable[[str, StepSize], nn.Module] = build) -> Row:
    """Everything about a network at one size; what it raises is the row's reason."""
    size = StepSize(IMAGES, side, CLASSES, DRAWN, "cpu")
    batch, row = build_batch(size), Row(network, side)
    try:
        classifier = build_network(network, size)
    except PagError as error:
        return replace(row, reason=in_few_words(error))
    row = replace(row, millions=sum(parameter.numel() for parameter in classifier.parameters()) / 1e6)
    for way in ("adjoint", "autograd"):
        step = TrainingStep(classifier, batch, pag_loss(Variant(CHEAPEST, differentiation=way)))
        try:
            step()
        except NotTwiceDifferentiable as error:
            return replace(row, reason=in_few_words(error))
        except AdjointUnavailable as error:
            row = replace(row, reason=in_few_words(error))
            continue
        row = replace(row, way=way)
        break
    loop = TrainingStep(build_network(network, size), batch, loop_loss)
    try:
        loop()
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        row, loop.loss = replace(row, reason=f"autograd: {in_few_words(error)}"), written_out_loss
        loop()
    if row.way == "adjoint":
        exact = build_batch(replace(size, batch=IMAGES_EXACT))
        row = replace(row, error=gradient_error(lambda: build_network(network, size), exact, loop.loss))
    speedup, not_timed = step_speedup(step, loop, rounds)
    for timed in (step, loop):
        timed.require_finite()
    return replace(row, speedup=speedup, not_timed=not_timed)


def measured_or_failed(network: str, side: int, rounds: int) -> Row:
    """As `measure`, of which no error ends a run of many networks."""
    try:
        return measure(network, side, rounds)
    except Exception as error:  # whatever a network of another's does
        return Row(network, side, reason=f"{type(error).__name__}: {in_few_words(error)}")


def kept_rows(output: Path, made_by: dict[str, Any]) -> list[Row]:
    """The rows of an earlier run by the same versions on the same machine."""
    if not output.exists():
        return []
    content = read_json(output)
    same = all(content["header"][key] == made_by[key] for key in ("versions", "hardware"))
    return [Row(**{**row, "speedup": row["speedup"] and tuple(row["speedup"])}) for row in content["rows"] if same]


def both(values: Sequence[str]) -> str:
    """The values of the two sizes, once where they are the same."""
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with a line for each network."""
    lines = ["| network | parameters | by | error | times as fast | remarks |", "|---|---|---|---|---|---|"]
    for network in dict.fromkeys(row.network for row in rows):
        of = sorted((row for row in rows if row.network == network), key=lambda row: row.side)
        cells = [
            f"`{network}`",
            both(["-" if row.millions is None else f"{row.millions:.1f} M" for row in of]),
            both([row.way or "-" for row in of]),
            both(["-" if row.error is None else f"{row.error:.0e}" for row in of]),
            both(["-" if row.speedup is None else f"{row.speedup[0]:.1f}" for row in of]),
            both([row.reason or row.not_timed for row in of]).strip("/ "),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    network: Annotated[list[str] | None, typer.Option(help="Names of timm; one of each family.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed steps of each.")] = ROUNDS,
    output: Annotated[Path, typer.Option(help="JSON; its rows are not measured again.")] = RESULTS,
) -> None:
    """Measure networks of timm at 32 and 64 pixels, and print them as a Markdown table."""
    prepare("cpu", 1)
    made_by = header(" ".join(["python -m benchmarks.timm_families", *sys.argv[1:]]), "cpu")
    rows = kept_rows(output, made_by)
    for name in network or NETWORKS:
        for side in SIDES:
            if any((row.network, row.side) == (name, side) for row in rows):
                continue
            rows.append(row := measured_or_failed(name, side, rounds))
            print(row, flush=True)
            write_json(output, {"header": made_by, "rows": [dataclasses.asdict(row) for row in rows]})
    print(table(rows))


if __name__ == "__main__":
    run(main)
