"""The C+1-class diffusion model against guided_diffusion called directly, and its training loop."""

import gc
import math
import shutil
import weakref

import pytest
import torch
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType
from guided_diffusion.gaussian_diffusion import get_named_beta_schedule as beta_schedule
from guided_diffusion.unet import AttentionBlock, UNetModel

from pag_core.compute.precision import AUTOCAST
from pag_core.compute.weight_average import ExponentialAverage
from pag_core.diffusion import training as training_module
from pag_core.diffusion.network import (
    architecture,
    build_network,
    build_noising,
    load_noise_predictor,
    to_diffusion_range,
)
from pag_core.diffusion.training import diffusion_labels, train_diffusion
from pag_core.errors import ParamsError, TrainingDiverged, WeightsError
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.saved_network import save_network
from tests.fixtures.samples import Killed, KilledFolder


def reference_process(schedule="linear", timesteps=1000):
    return GaussianDiffusion(
        betas=beta_schedule(schedule, timesteps), model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.FIXED_LARGE, loss_type=LossType.MSE, rescale_timesteps=True,
    )  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_labels_are_dropped_one_time_in_c(classes):
    count = 30_000
    labels = torch.arange(count) % classes
    found = diffusion_labels(labels, classes, torch.Generator().manual_seed(0))
    dropped = found == classes
    assert torch.equal(found[~dropped], labels[~dropped])
    assert found.dtype == torch.int64
    share = 1 / classes
    # five standard deviations, over all and for each class
    assert abs(dropped.sum().item() - count * share) < 5 * math.sqrt(count * share * (1 - share))
    for label in range(classes):
        members = labels == label
        n = members.sum().item()
        assert abs(dropped[members].sum().item() - n * share) < 5 * math.sqrt(n * share * (1 - share))


@pytest.mark.parametrize(("schedule", "timesteps"), [("linear", 1000), ("cosine", 4000), ("linear", 250)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_noised_images_and_timesteps_are_the_librarys(make_params, schedule, timesteps, share):
    params = make_params(
        {"diffusion.schedule": schedule, "diffusion.timesteps": timesteps, "diffusion.timestep_window": None}
    )
    from pag_core.diffusion.network import NoisePredictor

    seen = {}

    class Recorder(torch.nn.Module):
        def forward(self, x_t, times, labels):
            seen.update(times=times, labels=labels)
            return torch.cat([x_t, 7 + x_t], dim=1)

    card = {**architecture(params.diffusion), "class_names": ["a", "b"]}
    predictor = NoisePredictor(card, Recorder(), torch.device("cpu"))
    images, noise = torch.rand(4, 1, 5, 5), torch.randn(4, 1, 5, 5)
    timestep = int(share * timesteps)
    library = reference_process(schedule, timesteps)
    t = torch.full((4,), timestep)
    assert torch.allclose(
        predictor.noised(images, timestep, noise), library.q_sample(images * 2 - 1, t, noise), atol=1e-6
    )
    # learned variance comes in further channels, which are not noise
    assert torch.equal(predictor.predicted_noise(images, timestep, torch.tensor([0, 1, 2, 0])), images)
    assert torch.equal(seen["times"], library._scale_timesteps(t))
    assert seen["times"].dtype == torch.float32
    assert predictor.no_class == 2


def test_the_range_is_that_of_diffusion_models():
    assert to_diffusion_range(torch.tensor([0.0, 0.25, 1.0])).tolist() == [-1.0, -0.5, 1.0]


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_the_process_matches_the_loss(make_params, learn_sigma):
    process = build_noising(architecture(make_params({"diffusion.learn_sigma": learn_sigma}).diffusion))
    assert process.model_mean_type == ModelMeanType.EPSILON
    assert (process.model_var_type == ModelVarType.LEARNED_RANGE) == learn_sigma
    assert (process.loss_type == LossType.RESCALED_MSE) == learn_sigma
    assert process.rescale_timesteps


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_the_network_has_an_embedding_for_no_class(make_params, learn_sigma):
    changes = {
        "diffusion.learn_sigma": learn_sigma,
        "diffusion.attention_resolutions": [4],
        "diffusion.channel_multipliers": [1, 2],
    }
    card = architecture(make_params(changes).diffusion)
    network = build_network(card, (3, 8, 8), 5)
    assert network.label_emb.num_embeddings == 6
    assert network(torch.randn(2, 3, 8, 8), torch.tensor([3.0, 9.0]), torch.tensor([0, 5])).shape == (
        2,
        6 if learn_sigma else 3,
        8,
        8,
    )
    # attention at 4 pixels, i.e. after one halving, and in the middle block that always has it
    kinds = [
        sum(type(m).__name__ == "AttentionBlock" for m in part.modules())
        for part in (network.input_blocks, network.middle_block)
    ]
    assert kinds == [1, 1]
    assert (
        sum(
            type(m).__name__ == "AttentionBlock"
            for m in build_network({**card, "attention_resolutions": []}, (3, 8, 8), 5).modules()
        )
        == 1
    )


def library_network(card, side, channels, labels):
    return UNetModel(
        image_size=side, in_channels=channels, out_channels=channels * (1 + card["learn_sigma"]),
        model_channels=card["channels"], num_res_blocks=card["residual_blocks"], dropout=card["dropout"],
        attention_resolutions=tuple(side // pixels for pixels in card["attention_resolutions"]), num_classes=labels,
        channel_mult=tuple(card["channel_multipliers"]), num_heads=card["attention_heads"], use_scale_shift_norm=True,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["float32", "bfloat16", "float16", "half weights"])
def test_the_network_computes_what_the_librarys_does_to_the_last_bit(make_params, form):
    """Outputs and gradients, also in reduced precision; the state dict has the library's names in its order."""
    changes = {"channels": 64, "channel_multipliers": [1, 2], "attention_resolutions": [8], "learn_sigma": True}
    card = architecture(make_params({f"diffusion.{key}": value for key, value in changes.items()}).diffusion)
    torch.manual_seed(2)
    own, library = build_network(card, (3, 8, 8), 4), library_network(card, 8, 3, 5)
    with torch.no_grad():
        for parameter in own.parameters():  # some start at zero, and would hide what they do
            parameter += 0.05 * torch.randn_like(parameter)
    assert list(own.state_dict()) == list(library.state_dict()) and not list(own.buffers())
    library.load_state_dict(own.state_dict())
    images, results = torch.linspace(-2, 2, 576).view(3, 3, 8, 8), []
    for network in (own, library):
        if form == "half weights":
            network.convert_to_fp16()
            network.dtype = torch.float16
        with torch.autocast("cpu", dtype=AUTOCAST.get(form), enabled=form in AUTOCAST):
            # rescaled timesteps are fractions
            predicted = network(images, torch.tensor([0.0, 333.25, 999.75]), torch.tensor([0, 2, 4]))
        loss = (predicted.float() * images.repeat(1, 2, 1, 1)).sum()
        results.append([predicted, *torch.autograd.grad(loss, list(network.parameters()))])
    assert results[0][0].std() > 0.05
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("side", "attending"), [(96, [24, 12]), (64, [16, 8])])
def test_the_network_of_imagenet_64_takes_the_images_of_stl10(make_params, side, attending):
    """Appendix G.2: improved-diffusion's multipliers, attention after two and three halvings; here an eighth as wide."""
    changes = {"channels": 32, "channel_multipliers": [1, 2, 3, 4], "residual_blocks": 1, "attention_heads": 4}
    changes |= {"attention_resolutions": attending, "learn_sigma": True}
    card = architecture(make_params({f"diffusion.{key}": value for key, value in changes.items()}).diffusion)
    network, seen = build_network(card, (3, side, side), 10), set()
    for module in network.modules():
        if type(module).__name__ == "AttentionBlock":
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.shape[2]))
    with torch.no_grad():
        predicted = network(torch.randn(1, 3, side, side), torch.tensor([500.0]), torch.tensor([10]))
    assert predicted.shape == (1, 6, side, side) and seen == set(attending)


@pytest.mark.parametrize("side", [16, 3, 5])
def test_attention_where_the_network_has_no_such_side_is_refused(make_params, side):
    card = architecture(make_params({"diffusion.attention_resolutions": [side]}).diffusion)
    with pytest.raises(ParamsError):
        build_network(card, (1, 8, 8), 3)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 9, 9), r"halve the image 1 times.*9x9 .*prepare.image_size or give fewer multipliers"),
        (
            (1, 6, 8),
            r"the diffusion model .*takes square images, and these are 8x6 pixels \(width x height\).*prepare.image_size",
        ),
        ((3, 8, 5), r"the diffusion model .*takes square images, and these are 5x8 pixels"),
    ],
)
def test_images_that_cannot_be_halved_are_refused(make_params, shape, words):
    with pytest.raises(ParamsError, match=words):
        build_network(architecture(make_params().diffusion), shape, 3)


# --- training


@pytest.fixture
def train(dataset, make_params, cpu, monkeypatch):
    monkeypatch.setattr("pag_core.diffusion.training.REPORT_EVERY", 10)

    def run(folder, **changes):
        # dropout makes the run depend on the global generator too
        options = {
            "channel_multipliers": [1],
            "steps": 24,
            "batch_size": 2,
            "dropout": 0.1,
            **changes,
        }
        params = make_params({f"diffusion.{name}": value for name, value in options.items()}).diffusion
        card = architecture(params)
        return train_diffusion(
            lambda: build_network(card, dataset.image_shape, dataset.classes), dataset.splits["train"], card=card,
            params=params, classes=dataset.classes, seed=3, device=cpu, folder=folder,
        )  # fmt: skip

    return run


def test_resumed_training_gives_bit_identical_weights(tmp_path, train, cpu):
    whole, curve = train(RunFolder(tmp_path / "whole"))
    with pytest.raises(Killed):
        train(KilledFolder(tmp_path / "run"))
    assert RunFolder(tmp_path / "run").load_checkpoint(cpu)["done"] == 10
    # a new process would have other global states
    torch.manual_seed(999)
    resumed, resumed_curve = train(RunFolder(tmp_path / "run"))
    assert [row["step"] for row in curve] == [10, 20, 24]
    assert resumed_curve == curve
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.slow
def test_a_compiled_training_is_the_same_up_to_rounding_and_resumes_identically(tmp_path, train):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    # without dropout, of which a compiled network makes other draws
    plain, curve = train(RunFolder(tmp_path / "plain"), dropout=0.0)
    whole, compiled_curve = train(RunFolder(tmp_path / "whole"), dropout=0.0, compile=True)
    for row, expected in zip(compiled_curve, curve, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert all(torch.allclose(whole[name], tensor, atol=1e-3) for name, tensor in plain.items())
    with pytest.raises(Killed):
        train(KilledFolder(tmp_path / "run"), dropout=0.0, compile=True)
    resumed, _ = train(RunFolder(tmp_path / "run"), dropout=0.0, compile=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_training_in_bfloat16_rounds_its_steps_and_not_its_weights(tmp_path, train):
    _, curve = train(RunFolder(tmp_path / "plain"))
    rounded, rounded_curve = train(RunFolder(tmp_path / "rounded"), precision="bfloat16")
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())
    losses, expected = ([row["loss"] for row in one] for one in (rounded_curve, curve))
    assert losses != expected and losses == pytest.approx(expected, rel=0.02)


def test_a_resumed_run_lets_go_of_its_checkpoint(tmp_path, train, monkeypatch):
    """It holds three copies of the network, which would stay in memory for as long as the training lasts."""
    with pytest.raises(Killed):
        train(KilledFolder(tmp_path / "run"))
    loaded, alive = [], []
    load, step = RunFolder.load_checkpoint, training_module.DiffusionTrainer.step

    def remembered(self, device):
        state = load(self, device)
        loaded.extend(weakref.ref(tensor) for tensor in state["network"].values())
        return state

    def watched(self):
        if not alive:  # at the first step; to collect costs a good part of a second
            gc.collect()
            alive.append(sum(tensor() is not None for tensor in loaded))
        return step(self)

    monkeypatch.setattr(RunFolder, "load_checkpoint", remembered)
    monkeypatch.setattr(training_module.DiffusionTrainer, "step", watched)
    train(RunFolder(tmp_path / "run"))
    assert len(loaded) > 10 and alive == [0]


@pytest.mark.parametrize("heads", [1, 4])
def test_every_attention_has_the_heads_asked_for(make_params, heads):
    options = {"diffusion.channel_multipliers": [1, 2], "diffusion.attention_resolutions": [8]}
    card = architecture(make_params({**options, "diffusion.attention_heads": heads}).diffusion)
    found = [
        layer.num_heads for layer in build_network(card, (1, 8, 8), 3).modules() if isinstance(layer, AttentionBlock)
    ]
    assert found == [heads] * 4  # one in the encoder, two in the decoder, one in the middle


@pytest.mark.parametrize(("resolutions", "words"), [([8], "32 channels at 8"), ([], "64 channels at 4 pixels")])
def test_heads_that_do_not_divide_the_channels_are_refused(make_params, resolutions, words):
    heads = 64 if resolutions else 5
    options = {"diffusion.channel_multipliers": [1, 2], "diffusion.attention_resolutions": resolutions}
    card = architecture(make_params({**options, "diffusion.attention_heads": heads}).diffusion)
    with pytest.raises(ParamsError, match=f"diffusion.attention_heads is {heads}, which does not divide the {words}"):
        build_network(card, (1, 8, 8), 3)


def test_the_loss_falls(tmp_path, train):
    # one noise level: a model that learns nothing stays at the 1 of a zero prediction
    _, curve = train(RunFolder(tmp_path), steps=90, batch_size=16, dropout=0.0)
    assert curve[0]["loss"] < 1.1
    assert curve[-1]["loss"] < 0.75 * curve[0]["loss"]


def test_the_weights_are_the_moving_average(tmp_path, train, cpu, monkeypatch):
    """EMA by hand from the weights after every step."""
    seen = []
    update = ExponentialAverage.update_parameters

    def record(self, network):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        update(self, network)

    monkeypatch.setattr(ExponentialAverage, "update_parameters", record)
    weights, _ = train(RunFolder(tmp_path), steps=6, ema_decay=0.8)
    assert len(seen) == 6
    for name, tensor in weights.items():
        average = seen[0][name].double()
        for step in seen[1:]:
            average = 0.8 * average + 0.2 * step[name].double()
        assert torch.allclose(tensor.double(), average, atol=1e-6), name


def test_the_backward_pass_too_is_computed_in_the_precision(tmp_path, dataset, make_params, cpu, recorded_precision):
    card = architecture(make_params({"diffusion.channel_multipliers": [1]}).diffusion)
    network = build_network(card, dataset.image_shape, dataset.classes)
    seen = recorded_precision(training_module, network)
    params = make_params({"diffusion.steps": 1}).diffusion
    train_diffusion(
        lambda: network, dataset.splits["train"], card=card, params=params, classes=3, seed=3, device=cpu,
        folder=RunFolder(tmp_path),
    )  # fmt: skip
    assert len(seen) > 10 and set(seen) == {"float32"}


def test_a_precision_that_the_device_lacks_is_refused(tmp_path, train):
    with pytest.raises(ParamsError, match=r"diffusion\.precision tf32 is a mode of NVIDIA GPUs, and the device is cpu"):
        train(RunFolder(tmp_path), precision="tf32")


def test_only_timesteps_of_the_window_are_trained(tmp_path, train, monkeypatch):
    seen = []
    original = GaussianDiffusion.training_losses

    def record(self, model, x_start, t, **options):
        seen.append((t.clone(), x_start.clone(), options["model_kwargs"]["y"].clone()))
        return original(self, model, x_start, t, **options)

    monkeypatch.setattr(GaussianDiffusion, "training_losses", record)
    train(RunFolder(tmp_path), steps=24, timestep_window=[10, 12])
    times, images, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert set(times.tolist()) == {10, 11, 12}
    assert images.min() >= -1 and images.max() <= 1 and images.min() < -0.5
    assert set(labels.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("bad", [float("nan")])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, train, monkeypatch, cpu, bad):
    original, calls = GaussianDiffusion.training_losses, []

    def spoiled(self, *arguments, **options):
        calls.append(1)
        losses = original(self, *arguments, **options)
        return {"loss": losses["loss"] * bad} if len(calls) == 13 else losses

    monkeypatch.setattr(GaussianDiffusion, "training_losses", spoiled)
    with pytest.raises(TrainingDiverged, match=r"diffusion: the loss of step 13 is (nan|inf)"):
        train(RunFolder(tmp_path))
    # the checkpoint before it is kept, and finite
    state = RunFolder(tmp_path).load_checkpoint(cpu)
    assert state["done"] == 10 and all(
        torch.isfinite(t).all() for t in state["network"].values() if t.is_floating_point()
    )


def test_a_saved_model_is_loaded_for_its_own_classes_only(tmp_path, dataset, make_dataset, make_predictor, cpu):
    predictor = make_predictor(dataset)
    card = {
        "kind": "diffusion", "architecture": {k: v for k, v in predictor.card.items() if k != "class_names"},
        "class_names": list(dataset.class_names), "image_shape": list(dataset.image_shape), "dataset": dataset.fingerprint,
    }  # fmt: skip
    save_network(tmp_path / "d", predictor.network.state_dict(), card)
    again, saved = load_noise_predictor(tmp_path / "d", dataset, cpu)
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
    assert torch.equal(again.predicted_noise(x, 300, y), predictor.predicted_noise(x, 300, y))
    assert not again.network.training and again.no_class == 3 and saved.card["dataset"] == dataset.fingerprint
    for other in (make_dataset(classes=4), make_dataset(shape=(3, 8, 8)), make_dataset(shape=(1, 4, 4))):
        with pytest.raises(WeightsError, match="models the classes class 0, class 1, class 2"):
            load_noise_predictor(tmp_path / "d", other, cpu)
