"""The second PAG measure: how often an independent judge sees the target class in images that a classifier has drawn.

This project's own, as the PAG score is. Test images are attacked towards every other class by targeted PGD of a large
radius (Fig. 2); the judge is a support vector machine on pixels, which has no gradient in common with any network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.svm import SVC
from torch import nn

from pag_core.datasets.prepared import Split
from pag_core.evaluation.pag_score import require_known_classes
from pag_core.evaluation.pgd import targeted_images
from pag_core.evaluation.preconditions import batches_of

# the usual 1 leaves 0.5 to 1 point behind on the validation images of digits
PENALTY = 10.0


@dataclass(frozen=True)
class Judge:
    """A support vector machine with an RBF kernel on pixels, and its accuracy (a fraction) on `tested` test images."""

    machine: SVC
    trained_on: int
    tested: int
    accuracy: float

    def sees(self, images: torch.Tensor) -> torch.Tensor:
        """The classes that it sees in images float [N, C, H, W] in [0, 1]: int64 [N] on the CPU."""
        return torch.from_numpy(self.machine.predict(images.flatten(1).cpu().numpy())).to(torch.int64)


def trained_judge(train: Split, test: Split, *, class_names: Sequence[str], images: int) -> Judge:
    """A judge of the first `images` of the training split, or of all there are, tested on as many test images.

    Both splits are shuffled, so that their first images are a fair sample. The cost of a support vector machine grows with
    the square of the number of images, which is why there is a limit. Raises ParamsError unless each of the classes is
    among them: one that the judge does not know it never sees.
    """
    require_known_classes(train, class_names=class_names, images=images)
    trained, tested = (slice(0, min(images, len(split))) for split in (train, test))
    machine = SVC(kernel="rbf", gamma="scale", C=PENALTY)
    machine.fit(train.pixels(trained).flatten(1).cpu().numpy(), train.labels[trained].cpu().numpy())
    seen = machine.predict(test.pixels(tested).flatten(1).cpu().numpy())
    accuracy = float(np.mean(seen == test.labels[tested].cpu().numpy()))
    return Judge(machine, trained.stop, tested.stop, accuracy)


def judged(
    judge: Judge,
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    classes: int,
    norm: str,
    radius: float,
    steps: int,
    batch_size: int,
) -> float:
    """The fraction of adversarial examples in which `judge` sees the class that they were attacked towards.

    `images` float [B, C, H, W] in [0, 1] with `labels` int64 [B] are attacked by the gradients of `classifier` towards each
    class but their own, within `radius`; at most `batch_size` are attacked at once, whatever the number of classes.
    """
    hits = 0
    for rows in batches_of(len(images), max(1, batch_size // classes)):
        adversarial = targeted_images(
            classifier, images[rows], classes, norm=norm, radius=radius, steps=steps, batch_size=batch_size
        )
        seen = judge.sees(adversarial.flatten(0, 1)).unflatten(0, adversarial.shape[:2])
        targets = torch.arange(classes).expand_as(seen)
        hits += int(((seen == targets) & (targets != labels[rows].cpu()[:, None])).sum())
    return hits / (len(images) * (classes - 1))


def judged_clean(judge: Judge, images: torch.Tensor, labels: torch.Tensor, *, classes: int) -> float:
    """What `judged` would be of a classifier without any gradient: how often the judge sees each other class in the images.

    A judge that errs sees a class in some images that nobody attacked towards it.
    """
    return float((judge.sees(images) != labels.cpu()).double().mean()) / (classes - 1)
