"""Steps stay on their device: nothing of a training step is read back, and a stand-in for a GPU meets no CPU tensor.

Stand-ins say nothing about kernels, speed or determinism on a real GPU; the tests marked `gpu` do.
"""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pag_core.classifiers.building import build_classifier
from pag_core.compute.precision import computing_in
from pag_core.compute.processes import Process
from pag_core.compute.replicas import Replicas
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import architecture, build_network
from pag_core.diffusion.training import DiffusionTrainer, train_diffusion
from pag_core.gradient_store.store import RepresentativeGradients
from pag_core.gradient_store.targets import GradientBatch
from pag_core.gradients.distillation_precision import in_precision
from pag_core.gradients.online import OnlineGradients
from pag_core.gradients.score_based import score_based_gradients
from pag_core.objective.cosine_alignment import cosine_alignment_loss
from pag_core.objective.input_gradient import input_gradients
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.fixtures.samples import ARCHITECTURES, sbg_params

CPU = torch.device("cpu")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


class ValueReads(TorchDispatchMode):
    """Counts the operations that bring a value from the device to Python, where a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.count += operation.overloadpacket.__name__ in READS
        return operation(*arguments, **(keywords or {}))


def reads_per_step(run, fewer, more):
    """Value reads that a step adds: of runs that differ only in their number of steps (and read losses equally often)."""
    counts = []
    for steps in (fewer, more):
        with ValueReads() as reads:
            run(steps)
        counts.append(reads.count)
    return (counts[1] - counts[0]) / (more - fewer)


@pytest.fixture
def train_classifier(tmp_path, dataset, make_params, make_classifier):
    def train(steps, augmentation="none", classifier=None, targets=None):
        params = make_params(
            {
                "train.epochs": 1, "train.batch_size": 36 // steps, "train.augmentation": augmentation, "source": "cm",
                "objective.classes_per_step": 3,
            }
        )  # fmt: skip
        split = dataset.splits["train"]
        targets = targets or RepresentativeGradients(torch.rand(3, 1, 8, 8), split)
        Trainer(
            classifier=classifier or make_classifier(), train=split, classes=3, params=params.train,
            term=AlignmentTerm(targets, 2.0, params.objective), seed=5, device=CPU,
            folder=RunFolder(tmp_path / f"run-{steps}"), checkpoint_seconds=10**6,
        ).run(tmp_path / f"curves-{steps}")  # fmt: skip

    return train


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_a_step_of_the_classifier_reads_two_values(train_classifier, augmentation):
    """one_hot checks the range of classes, lowest and highest, on the CPU alone."""
    assert reads_per_step(lambda steps: train_classifier(steps, augmentation), 6, 9) == 2


@pytest.mark.parametrize("timestep", [300, [200, 300]])
def test_a_step_that_asks_the_teacher_reads_no_more(train_classifier, dataset, make_predictor, timestep):
    teacher = OnlineGradients(make_predictor(dataset), sbg_params(timestep=timestep))
    assert reads_per_step(lambda steps: train_classifier(steps, "crop_flip", targets=teacher), 6, 9) == 2


def test_a_planted_read_is_counted(train_classifier, make_classifier):
    plain = reads_per_step(train_classifier, 6, 9)

    def planted(steps):
        classifier = make_classifier()
        for parameter in classifier.parameters():
            parameter.register_hook(lambda gradient: gradient * float(gradient.sum() != 0))
            break
        train_classifier(steps, classifier=classifier)

    assert reads_per_step(planted, 6, 9) >= plain + 1


def test_a_step_of_the_diffusion_model_reads_one_value(tmp_path, dataset, make_params, monkeypatch):
    monkeypatch.setattr("pag_core.diffusion.training.REPORT_EVERY", 1000)

    def train(steps):
        params = make_params({"diffusion.channel_multipliers": [1], "diffusion.steps": steps}).diffusion
        card = architecture(params)
        train_diffusion(
            lambda: build_network(card, (1, 8, 8), 3), dataset.splits["train"], card=card, params=params, classes=3,
            seed=3, device=CPU, folder=RunFolder(tmp_path / f"run-{steps}"),
        )  # fmt: skip

    # the average asks its counter whether this is the first update; it lives on the CPU, so a GPU is not waited for
    assert reads_per_step(train, 2, 5) == 1


# --- fake tensors of a GPU: operations run, kernels do not, and devices that differ raise


@pytest.fixture(autouse=True)
def autocast_on_a_fake_gpu(monkeypatch):
    """torch switches autocast off where it finds no GPU."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)


class CopiesToGpu(TorchDispatchMode):
    """Counts the copies from the CPU to a GPU, each of which would wait for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        name = operation.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source = arguments[name == "copy_"]
            self.count += source.device.type == "cpu" and result.device.type == "cuda"
        return result


def copies_of_calls(run, calls=3):
    """The copies to the GPU of each of several calls; the first may fill what later ones keep on the device."""
    counts = []
    for _ in range(calls):
        with CopiesToGpu() as counted:
            run()
        counts.append(counted.count)
    return counts


def on_fake_gpu(network, mode, memory_format=torch.contiguous_format):
    """The network with fake parameters and buffers on cuda:0; no GPU is needed."""
    network = copy.deepcopy(network)
    with mode:
        for module in network.modules():
            for name, value in list(module._parameters.items()):
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cuda:0")
                    if fake.dim() == 4:
                        fake = fake.contiguous(memory_format=memory_format)
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
            for name, value in list(module._buffers.items()):
                if value is not None:
                    module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda:0")
    return network


class GpuDraws(torch.Generator):
    """Draws that say they are a GPU's, without which torch makes no generator of that kind."""

    device = torch.device("cuda:0")


@pytest.fixture
def fake_diffusion_step(dataset, make_params, monkeypatch):
    """`fake_diffusion_step(mode)`: a step of training on fake tensors; its backward pass, which needs a GPU, gives zeros."""

    def make(mode, **options):
        params = make_params({"diffusion.channel_multipliers": [1], **options}).diffusion
        card, train = architecture(params), dataset.splits["train"]
        network = on_fake_gpu(build_network(card, (1, 8, 8), 3), mode)
        monkeypatch.setattr("pag_core.diffusion.training.generator", lambda *_: GpuDraws())
        with mode:
            data = Split(*(torch.empty(part.shape, dtype=part.dtype) for part in (train.images, train.labels)))
            gpu = torch.device("cuda:0")
            trainer = DiffusionTrainer(network.train(), data.to(gpu), card, params, 3, 5, gpu)
        trainer.begin(Replicas(Process(0, 1), None))

        def backward(loss, share):
            assert loss.requires_grad and loss.device.type == "cuda"
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(trainer.team, "backward", backward)

        def step():
            trainer.average.n_averaged = torch.tensor(1)  # a fake counter has no value to ask for
            trainer.step()

        return step

    return make


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # of the copy that becomes the average
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_a_step_of_the_diffusion_model_copies_nothing(fake_diffusion_step, monkeypatch, learn_sigma):
    """Through the real U-Net; of the noise schedule only the first step sends its tables."""
    monkeypatch.setattr("pag_core.diffusion.network._resident", {})  # fake tensors must not outlive the test
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # the library's tables are numpy arrays
    step = fake_diffusion_step(mode, **{"diffusion.learn_sigma": learn_sigma})
    with mode:
        copies = copies_of_calls(step)
    assert copies[0] > 0 and copies[1:] == [0, 0]


def whole_forward(
    arch, mode, *, batch_norm="frozen", precision="float32", memory_format=torch.contiguous_format, targets=None
):
    """Input-gradients and loss of Eq. 5 on a fake GPU: what a step does up to its backward pass."""
    options, side = ARCHITECTURES[arch]
    options = {"width": None, "activation": None, **options}
    network = build_classifier(arch, **options, image_shape=(3, side, side), classes=4).train()
    network = on_fake_gpu(network, mode, memory_format)
    with mode, CopiesToGpu() as counted:
        images = torch.rand(6, 3, side, side, device="cuda:0")
        classes = torch.randint(4, (6, 2), device="cuda:0")
        target = torch.rand(6, 2, 3, side, side, device="cuda:0") if targets is None else targets(side)
        with computing_in(precision, torch.device("cuda:0")):
            logits, gradients = input_gradients(
                network, images, classes, output="log_softmax", differentiation="adjoint", batch_norm=batch_norm
            )
        loss = cosine_alignment_loss(gradients, target)
    assert counted.count == 0
    assert logits.device.type == gradients.device.type == loss.device.type == "cuda"
    assert logits.dtype == getattr(torch, precision)
    return gradients


def quantised_targets(side):
    codes = torch.zeros(6, 2, 3, side, side, dtype=torch.int8, device="cuda:0")
    return GradientBatch(codes, torch.rand(6, 2, device="cuda:0")).dequantised()


CASES = [
    *({"arch": arch} for arch in ARCHITECTURES),
    *({"arch": arch, "batch_norm": meaning} for arch in ("resnet18", "wrn_34_10") for meaning in ("repeat", "class")),
    *({"arch": arch, "precision": "bfloat16"} for arch in ARCHITECTURES),
    *({"arch": arch, "memory_format": torch.channels_last} for arch in ("resnet18", "vgg11")),
    {"arch": "small_resnet", "targets": quantised_targets},
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: " ".join(str(getattr(v, "__name__", v)) for v in case.values())
)
def test_every_architecture_stays_on_a_fake_gpu(case):
    whole_forward(mode=FakeTensorMode(allow_non_fake_inputs=False), **case)


def test_a_tensor_made_on_the_cpu_is_caught():
    with pytest.raises(RuntimeError, match=r"[Dd]evice"):
        whole_forward(
            "small_resnet", FakeTensorMode(allow_non_fake_inputs=False),
            targets=lambda side: torch.rand(6, 2, 3, side, side),
        )  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_distillation_stays_on_a_fake_gpu(make_predictor, dataset, precision):
    predictor = make_predictor(dataset)
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # the library's tables are numpy arrays
    predictor.network, predictor.device = on_fake_gpu(predictor.network, mode), torch.device("cuda:0")
    with mode:
        images, noise = (torch.rand(4, 1, 8, 8, device="cuda:0") for _ in range(2))
        teacher = in_precision(predictor, precision=precision)
        found = score_based_gradients(teacher, images, timestep=300, noise=noise)
        assert found.device.type == "cuda" and found.shape == (4, 3, 1, 8, 8)
        assert copies_of_calls(lambda: score_based_gradients(teacher, images, timestep=300, noise=noise)) == [0] * 3
        with pytest.raises(RuntimeError, match=r"[Dd]evice"):
            score_based_gradients(teacher, images, timestep=300, noise=torch.rand(4, 1, 8, 8))


@pytest.mark.parametrize("timestep", [300, [200, 300]])
def test_the_teacher_of_a_step_copies_nothing(make_predictor, dataset, timestep):
    predictor = make_predictor(dataset)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    predictor.network, predictor.device = on_fake_gpu(predictor.network, mode), torch.device("cuda:0")
    sbg = sbg_params(timestep=timestep, draws=2)
    teacher = OnlineGradients(in_precision(predictor, precision="bfloat16"), sbg)
    with mode:
        images, classes = torch.rand(4, 1, 8, 8, device="cuda:0"), torch.zeros(4, 2, dtype=torch.int64, device="cuda:0")
        noise = torch.rand(len(sbg.timesteps), 2, 4, 1, 8, 8, device="cuda:0")
        assert copies_of_calls(lambda: teacher.gradients(images, classes, noise)) == [0] * 3


def test_a_planted_copy_is_counted():
    with FakeTensorMode():
        gpu, cpu = torch.empty(3, device="cuda:0"), torch.empty(3)
        assert copies_of_calls(lambda: cpu.to("cuda:0"), 2) == copies_of_calls(lambda: gpu.copy_(cpu), 2) == [1, 1]
        assert copies_of_calls(lambda: gpu + gpu.clone(), 2) == [0, 0]
