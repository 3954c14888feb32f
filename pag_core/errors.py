"""Every error that a user can cause, named after what is wrong; each message says the value, the place and the remedy."""


class PagError(Exception):
    """Base of all errors raised on bad input; a stage prints it without a traceback."""


class ParamsError(PagError):
    """params.yaml holds an unknown key or a refused value."""


class DatasetError(PagError):
    """A dataset is missing, unreadable or not usable for classification."""


class StoreError(PagError):
    """A gradient store is damaged, incomplete or was made from something else."""


class ArtifactError(PagError):
    """What an earlier stage writes is missing or damaged."""


class WeightsError(PagError):
    """A saved network is damaged or does not fit what it is used for."""


class ShapeMismatch(PagError):
    """Two tensors that must agree in shape do not."""


class LabelIgnored(PagError):
    """The diffusion model predicts the same with and without its label, so Eq. 8 would be noise."""


class TrainingDiverged(PagError):
    """A loss stopped being finite."""


class RankLost(PagError):
    """One of the processes that share a piece of work failed."""


class RepositoryMissing(PagError):
    """Git, a repository, a commit or who commits is missing, where DVC needs it."""


class ExperimentFailed(PagError):
    """A run of a description failed, or DVC cannot queue it."""


class LocksUnavailable(PagError):
    """A file system without file locks, by which processes keep out of each other's way."""


class LaunchRefused(PagError):
    """A stage was started as several processes that cannot share its work."""


class EvaluationRefused(PagError):
    """A model or input for which an attack would report a wrong robustness."""


class AdjointUnavailable(PagError):
    """A network has no adjoint; automatic differentiation computes the input-gradients of any network."""


class NotTwiceDifferentiable(PagError):
    """A network has an operation without a second derivative, and is to learn from its input-gradients."""


class CompilerMissing(PagError):
    """torch.compile was asked for where nothing can compile."""
