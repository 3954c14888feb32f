"""The datasets by the name that params.yaml gives them."""

import os
from pathlib import Path
from typing import Any

from pag_core.datasets.labelled_images import RawDataset
from pag_core.params.sections import Params


def downloads() -> Path:
    """Where published archives lie: in the main repository (DVC names it in DVC_ROOT), for queued experiments too."""
    return Path(os.environ.get("DVC_ROOT", ".")) / "data/downloads"


def state_of_source(params: Params) -> dict[str, Any]:
    """What the images are read from, without reading them: whether work on them that was begun may go on."""
    if params.dataset != "image_folder":
        return {}
    from pag_core.datasets.image_folder import state_of

    return {params.image_folder: state_of(Path(params.image_folder))}


def load_raw(params: Params, place: Path) -> RawDataset:
    """The dataset that `params.dataset` names, as its publisher divides it: `prepare.classes` of it, at `prepare.image_size`.

    What has to be unpacked is, into the folder `place`. Raises DatasetError.
    """
    # each imported where it is asked for: torchvision, which image_folder needs, takes longer than reading the digits
    match params.dataset:
        case "digits":
            from pag_core.datasets import digits

            raw = digits.load()
        case "cifar10":
            from pag_core.datasets import cifar

            raw = cifar.load(cifar.CIFAR10, downloads())
        case "cifar100":
            from pag_core.datasets import cifar

            raw = cifar.load(cifar.CIFAR100, downloads())
        case "stl10":
            from pag_core.datasets import stl10

            raw = stl10.load(downloads())
        case "tiny_imagenet":
            from pag_core.datasets import tiny_imagenet

            raw = tiny_imagenet.load(downloads())
        case "image_folder":
            from pag_core.datasets import image_folder

            # resized as they are read: only then do they have one size
            return image_folder.load(
                Path(params.image_folder),
                place,
                image_size=params.prepare.image_size,
                images_per_class=params.prepare.images_per_class,
                classes=params.prepare.classes,
            )
    from pag_core.datasets.resizing import at_size

    return at_size(raw.of_classes(params.prepare.classes), params.prepare.image_size)
