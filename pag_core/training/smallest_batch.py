"""Whether the network takes the smallest batch of the training: batch-norm has no statistics of a single value a channel."""

import torch
from torch import nn

from pag_core.compute.processes import Process
from pag_core.compute.replicas import Replicas
from pag_core.errors import ParamsError
from pag_core.objective.inner_attack import in_mode


def require_smallest_batch(
    classifier: nn.Module, image_shape: tuple[int, ...], *, images: int, batch_size: int, processes: int
) -> None:
    """Raise ParamsError if `processes` that share batches of `batch_size` of `images` have a step of one image each, and in
    train mode `classifier` does not take one of `image_shape` [C, H, W].

    It is tried, and left as it was: whether an image is enough depends on the features that are left of it.
    """
    if smallest_share(images, batch_size, processes) > 1:
        return
    refusal = _refusal(classifier, image_shape, 1)
    if refusal is None or _refusal(classifier, image_shape, 2) is not None:
        return
    nearest = [
        next((size for size in sizes if smallest_share(images, size, processes) > 1), None)
        for sizes in (range(batch_size - 1, 1, -1), range(batch_size + 1, images + 1))
    ]
    sizes = [str(size) for size in nearest if size is not None]
    remedies = [f"set it to {' or '.join(sizes)}"] if sizes else []
    if processes > 1 and smallest_share(images, batch_size, 1) > 1:
        remedies.append("set processes: 1")
    step = min(_step_sizes(images, batch_size), key=lambda size: _share(size, processes))
    shared = f", for {processes} processes to share" if processes > 1 else ""
    raise ParamsError(
        f"params.yaml: train.batch_size is {batch_size}, so that of {images} training images a step of each epoch has {step}"
        f"{shared}; in train mode the network takes no single image ({refusal}): "
        f"{', or '.join(remedies or ['choose another arch'])}"
    )


def smallest_share(images: int, batch_size: int, processes: int) -> int:
    """The fewest images that one of `processes` gets in a step of an epoch."""
    return min(_share(size, processes) for size in _step_sizes(images, batch_size))


def _step_sizes(images: int, batch_size: int) -> set[int]:
    return {min(batch_size, images), images % batch_size} - {0}


def _share(size: int, processes: int) -> int:
    # of the ranks the first has the fewest
    return len(range(size)[Replicas(Process(0, processes), None).share(size).rows])


def _refusal(classifier: nn.Module, image_shape: tuple[int, ...], images: int) -> str | None:
    """What the network says to a batch of so many images in train mode; its buffers and the random streams stay as they are."""
    device = next(classifier.parameters()).device
    buffers = {name: value.clone() for name, value in classifier.named_buffers()}
    streams = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(streams), in_mode(classifier, "train"):
        try:
            torch.func.functional_call(classifier, buffers, (torch.zeros(images, *image_shape, device=device),))
        except Exception as error:  # a network of the user's may say it in its own way
            return " ".join(str(error).split())
    return None
