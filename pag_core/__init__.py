"""Training of image classifiers with perceptually aligned input-gradients (PAG), as a pipeline and as a library.

What is public is listed here and nowhere else, and is loaded when it is first used (PEP 562). Other packages hold docs alone
in this file; this one holds names besides, none of which can change a stage's result.
"""

TYPE_CHECKING = False  # true to type checkers by its name; typing itself takes longer to load than all else here
if TYPE_CHECKING:
    from pag_core.errors import PagError as PagError
    from pag_core.library.evaluation import autoattack as autoattack
    from pag_core.library.evaluation import foolbox_suite as foolbox_suite
    from pag_core.library.evaluation import masking_checks as masking_checks
    from pag_core.library.evaluation import pag_score as pag_score
    from pag_core.library.evaluation import targeted_figure as targeted_figure
    from pag_core.library.evaluation import targeted_images as targeted_images
    from pag_core.library.loss import PAGLoss as PAGLoss
    from pag_core.library.loss import alignment_loss as alignment_loss
    from pag_core.library.loss import pag_loss as pag_loss
    from pag_core.library.score_based import ScoreBased as ScoreBased
    from pag_core.library.score_based import VarianceExploding as VarianceExploding
    from pag_core.library.targets import GradientTargets as GradientTargets
    from pag_core.library.targets import class_mean_targets as class_mean_targets
    from pag_core.library.targets import nearest_neighbor_targets as nearest_neighbor_targets
    from pag_core.library.targets import one_image_targets as one_image_targets
    from pag_core.library.targets import open_targets as open_targets
    from pag_core.library.user_data import Indexed as Indexed
    from pag_core.library.user_data import prepared_split as prepared_split
    from pag_core.library.writing import write_gradients as write_gradients

PUBLIC = {
    "errors": ("PagError",),
    "library.loss": ("pag_loss", "alignment_loss", "PAGLoss"),
    "library.targets": (
        "GradientTargets", "open_targets", "one_image_targets", "class_mean_targets", "nearest_neighbor_targets",
    ),
    "library.score_based": ("ScoreBased", "VarianceExploding"),
    "library.writing": ("write_gradients",),
    "library.user_data": ("Indexed", "prepared_split"),
    "library.evaluation": (
        "autoattack", "foolbox_suite", "masking_checks", "pag_score", "targeted_images", "targeted_figure",
    ),
}  # fmt: skip
_PLACES = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = list(_PLACES)


if not TYPE_CHECKING:  # to which any name would be one of this module

    def __getattr__(name: str) -> object:
        import importlib

        if name not in _PLACES:
            raise AttributeError(f"module 'pag_core' has no attribute {name!r}; public are: {', '.join(_PLACES)}")
        return getattr(importlib.import_module(f"pag_core.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
