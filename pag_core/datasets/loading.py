"""The datasets by the name that params.yaml gives them."""

from pathlib import Path

from pag_core.datasets.labelled_images import RawDataset
from pag_core.params.sections import Params

DOWNLOADS = Path("data/downloads")


def load_raw(params: Params) -> RawDataset:
    """The dataset that `params.dataset` names, as its publisher divides it; raises DatasetError."""
    match params.dataset:
        # each imported where it is asked for: torchvision, which the others need, takes longer than reading the digits
        case "digits":
            from pag_core.datasets import digits

            return digits.load()
        case "cifar10":
            from pag_core.datasets import cifar10

            return cifar10.load(DOWNLOADS)
        case "image_folder":
            from pag_core.datasets import image_folder

            return image_folder.load(
                Path(params.image_folder),
                image_size=params.prepare.image_size,
                images_per_class=params.prepare.images_per_class,
            )
