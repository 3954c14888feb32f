"""A checkpoint of guided_diffusion's own code, read and rebuilt: its predictions, and what is refused."""

import copy
import pickle

import pytest
import torch
from guided_diffusion import script_util
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pag_core.diffusion.network import NoisePredictor
from pag_core.errors import ParamsError, WeightsError
from pag_core.exchange.diffusion_checkpoint import fitted_network, inferred_config, read_checkpoint, with_no_class_last

CLASSES, SIDE = 3, 16
FLAGS = {
    **script_util.model_and_diffusion_defaults(), "class_cond": True, "image_size": SIDE, "num_channels": 32,
    "channel_mult": "1,2", "num_res_blocks": 1, "rescale_timesteps": True,
}  # fmt: skip
# flags that the file shows in its shapes, and those that an option has to give
VARIANTS = {
    "improved-diffusion's defaults": ({}, {}),
    "as for CIFAR-10": (
        {"learn_sigma": True, "dropout": 0.3, "num_res_blocks": 3},
        {"noise_schedule": "cosine", "diffusion_steps": 4000},
    ),
    "guided_diffusion for ImageNet": (
        {"resblock_updown": True, "learn_sigma": True, "channel_mult": "1,2,2", "num_res_blocks": 2},
        {"num_head_channels": 16, "use_new_attention_order": True, "rescale_timesteps": False, "diffusion_steps": 250},
    ),
    "levels of one width": (
        {"resblock_updown": True, "channel_mult": "1,1,1", "attention_resolutions": "4"},
        {"num_heads": 1},
    ),
    "labels added": ({"use_scale_shift_norm": False, "num_channels": 64, "channel_mult": "1"}, {"num_heads": 2}),
}
OPTION_NAMES = {
    "num_heads": "attention_heads", "num_head_channels": "head_channels", "use_new_attention_order": "new_attention_order",
    "rescale_timesteps": "rescale_timesteps", "diffusion_steps": "timesteps", "noise_schedule": "schedule",
}  # fmt: skip


@pytest.fixture
def make_checkpoint(tmp_path, monkeypatch):
    """`make_checkpoint(labels=4, num_heads=2)`: the library's model with random weights, its noising, and its file."""

    def make(labels=CLASSES + 1, **flags):
        monkeypatch.setattr(script_util, "NUM_CLASSES", labels)
        torch.manual_seed(3)
        model, noising = script_util.create_model_and_diffusion(**{**FLAGS, **flags})
        with torch.no_grad():
            for parameter in model.parameters():  # some start at zero, and would hide what they do
                parameter += 0.05 * torch.randn_like(parameter)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        return model.eval(), noising, tmp_path / "model.pt"

    return make


def rebuilt(path, *, shape=(3, SIDE, SIDE), no_class=None, weights=None, **options):
    tensors = with_no_class_last(read_checkpoint(path, weights).tensors, CLASSES, no_class, "it")
    chosen = {name: FLAGS[flag] for flag, name in OPTION_NAMES.items()} | options
    chosen["head_channels"] = None if chosen["head_channels"] == -1 else chosen["head_channels"]
    card = inferred_config(tensors, SIDE, "it") | {"dropout": 0.0, "timestep_window": None, **chosen}
    network = fitted_network(card, tensors, shape, "it")
    return NoisePredictor({**card, "class_names": ["a", "b", "c"]}, network, torch.device("cpu"))


@pytest.mark.parametrize(("shown", "given"), VARIANTS.values(), ids=VARIANTS)
def test_predictions_are_those_of_the_library(make_checkpoint, shown, given):
    model, noising, path = make_checkpoint(**shown, **given)
    predictor = rebuilt(path, **{OPTION_NAMES[flag]: value for flag, value in given.items()})
    images, noise, labels = torch.rand(4, 3, SIDE, SIDE), torch.randn(4, 3, SIDE, SIDE), torch.arange(4)
    timestep = torch.full((4,), 120)
    noised = noising.q_sample(images * 2 - 1, timestep, noise)
    with torch.no_grad():
        expected = noising._wrap_model(model)(noised, timestep, y=labels)[:, :3]
        found = predictor.predicted_noise(predictor.noised(images, 120, noise), 120, labels)
    assert torch.allclose(found, expected, atol=1e-5) and found.std() > 0.1
    assert predictor.no_class == 3


@pytest.mark.parametrize(
    "wrong", [{"attention_heads": 1}, {"schedule": "cosine"}, {"timesteps": 4000}, {"new_attention_order": True}]
)
def test_each_option_counts(make_checkpoint, wrong):
    _, _, path = make_checkpoint()
    images, noise, labels = torch.rand(4, 3, SIDE, SIDE), torch.randn(4, 3, SIDE, SIDE), torch.arange(4)
    right, other = rebuilt(path), rebuilt(path, **wrong)
    with torch.no_grad():
        found = [p.predicted_noise(p.noised(images, 120, noise), 120, labels) for p in (right, other)]
    assert not torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("no_class", [0, 2])
def test_the_label_that_means_no_class_is_moved_to_the_end(make_checkpoint, no_class):
    model, noising, path = make_checkpoint()
    predictor = rebuilt(path, no_class=no_class)
    x, timestep = torch.randn(4, 3, SIDE, SIDE), torch.full((4,), 7)
    theirs = torch.tensor([label for label in range(4) if label != no_class] + [no_class])
    with torch.no_grad():
        expected = noising._wrap_model(model)(x, timestep, y=theirs)
        assert torch.allclose(predictor.predicted_noise(x, 7, torch.arange(4)), expected, atol=1e-5)


def test_half_precision_is_read_as_float32(make_checkpoint):
    model, _, path = make_checkpoint()
    torch.save({name: tensor.half() for name, tensor in model.state_dict().items()}, path)
    assert {tensor.dtype for tensor in read_checkpoint(path).tensors.values()} == {torch.float32}


def named(prefix, model):
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def training_state(model):
    """What a training script keeps beside the weights."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return {"optimizer": optimizer.state_dict(), "epoch": 7, "losses": [0.5, 0.25], "name": "run"}


# what people save, by what wrote it: the content from the network, and where the names then begin
WRAPPED = {
    "DataParallel": (lambda model: nn.DataParallel(model).state_dict(), "module."),
    "torch.compile": (lambda model: torch.compile(model).state_dict(), "_orig_mod."),
    "DataParallel of torch.compile": (lambda model: nn.DataParallel(torch.compile(model)).state_dict(), "module._orig_mod."),
    "AveragedModel": (lambda model: AveragedModel(model).state_dict(), "module."),
    "AveragedModel of DataParallel": (lambda model: AveragedModel(nn.DataParallel(model)).state_dict(), "module.module."),
    "a script": (lambda model: {"state_dict": model.state_dict(), **training_state(copy.deepcopy(model))}, "state_dict."),
    "model": (lambda model: {"model": model.state_dict()}, "model."),
    "ema": (lambda model: {"ema": AveragedModel(model).state_dict(), "step": torch.tensor(3)}, "ema.module."),
    "ema_state_dict": (lambda model: {"ema_state_dict": model.state_dict()}, "ema_state_dict."),
    "Lightning": (
        lambda model: {"state_dict": named("model.", model), "loops": {"fit_loop": {}}, "callbacks": {}, "hparams": None},
        "state_dict.model.",
    ),
    "Lightning with an average": (lambda model: {"state_dict": named("ema_model.", model)}, "state_dict.ema_model."),
    "nested": (lambda model: {"networks": {"generator": nn.DataParallel(model).state_dict()}}, "networks.generator.module."),
}  # fmt: skip


@pytest.mark.parametrize(("save", "prefix"), WRAPPED.values(), ids=WRAPPED)
def test_names_with_a_prefix_are_understood(make_checkpoint, save, prefix):
    model, noising, path = make_checkpoint()
    torch.save(save(model), path)
    read = read_checkpoint(path)
    assert read.prefix == prefix and list(read.tensors) == list(model.state_dict())
    x, timestep, labels = torch.randn(4, 3, SIDE, SIDE), torch.full((4,), 7), torch.arange(4)
    with torch.no_grad():
        assert torch.equal(
            rebuilt(path).predicted_noise(x, 7, labels), noising._wrap_model(model)(x, timestep, y=labels)
        )


def test_a_plain_file_has_no_prefix_and_nothing_left_out(make_checkpoint):
    _, _, path = make_checkpoint()
    assert read_checkpoint(path).prefix == "" and read_checkpoint(path).left_out == []


def test_what_is_left_out_is_told(make_checkpoint):
    model, _, path = make_checkpoint()
    shadow = {name.replace(".", ""): tensor for name, tensor in model.state_dict().items()}
    torch.save({"ema": shadow, **WRAPPED["a script"][0](model), "n_averaged": torch.tensor(3)}, path)
    assert read_checkpoint(path).left_out == ["ema", "n_averaged", "optimizer"]


SEVERAL = {
    "two state dicts": (lambda model, average: {"model": model.state_dict(), "ema": average.state_dict()}, "model", "ema"),
    "one state dict": (
        lambda model, average: {**named("online_model.", model), **named("ema_model.", average), "step": torch.tensor(5)},
        "online_model", "ema_model",
    ),
    "Lightning": (
        lambda model, average: {"state_dict": {**named("net.", model), **named("net_ema.module.", average)}},
        "state_dict.net", "state_dict.net_ema.module",
    ),
    "one within the other": (lambda model, average: {**model.state_dict(), **named("ema.", average)}, "", "ema"),
}  # fmt: skip


@pytest.mark.parametrize(("save", "plain", "averaged"), SEVERAL.values(), ids=SEVERAL)
def test_of_several_networks_one_is_asked_for(make_checkpoint, save, plain, averaged):
    model, _, path = make_checkpoint()
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    torch.save(save(model, average), path)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert f'--weights "{plain}"' in str(caught.value) and f'--weights "{averaged}"' in str(caught.value)
    with pytest.raises(WeightsError, match='no network under "none of them"; it has'):
        read_checkpoint(path, "none of them")
    for name, expected in ((plain, model), (averaged, average), (f"{averaged}.", average)):
        found = read_checkpoint(path, name).tensors
        assert found.keys() == expected.state_dict().keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items())


def test_one_network_can_be_asked_for_too(make_checkpoint):
    model, _, path = make_checkpoint()
    torch.save({"model": model.state_dict()}, path)
    assert read_checkpoint(path, "model").prefix == "model."
    with pytest.raises(WeightsError, match='no network under "ema"; it has: --weights "model"'):
        read_checkpoint(path, "ema")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (CLASSES, "3 labels, one for each class and none that means no class.*Train one with 4 labels"),
        (1000, "1000 labels; 3 classes and no class make 4"),
    ],
)
def test_other_numbers_of_labels_are_refused(make_checkpoint, labels, words):
    _, _, path = make_checkpoint(labels)
    with pytest.raises(WeightsError, match=words):
        rebuilt(path)


def test_a_model_without_labels_is_refused(make_checkpoint):
    _, _, path = make_checkpoint(class_cond=False)
    with pytest.raises(WeightsError, match=r"no labels \(no label_emb.weight\)"):
        rebuilt(path)


def test_a_no_class_that_is_no_label_is_refused(make_checkpoint):
    _, _, path = make_checkpoint()
    with pytest.raises(WeightsError, match="--no-class is 4; the labels of it are 0 to 3"):
        rebuilt(path, no_class=4)


def test_other_channels_are_refused(make_checkpoint):
    _, _, path = make_checkpoint()
    with pytest.raises(WeightsError, match="images of 3 channels; those of the dataset have 1"):
        rebuilt(path, shape=(1, SIDE, SIDE))


def test_heads_that_do_not_divide_the_channels_are_refused(make_checkpoint):
    _, _, path = make_checkpoint()
    with pytest.raises(ParamsError, match="head_channels is 5"):
        rebuilt(path, head_channels=5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.pop("middle_block.0.in_layers.0.weight"), "middle_block.0.in_layers.0.weight is absent"),
        (lambda s: s.update({"extra.weight": torch.zeros(2)}), "extra.weight is .2., and no part of the network"),
        (lambda s: s.pop("time_embed.0.weight"), r"has no time_embed.0.weight.*\(but time_embed.0.bias, time_embed.2"),
        (lambda s: s["out.2.weight"].fill_(float("nan")), "out.2.weight holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(make_checkpoint, spoil, words):
    model, _, path = make_checkpoint()
    state = model.state_dict()
    spoil(state)
    torch.save(state, path)
    with pytest.raises(WeightsError, match=words):
        rebuilt(path)


class Evil:
    """An object whose unpickling writes a file."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return (open, (str(self.sentinel), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle", "hidden"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, how):
    path, sentinel = tmp_path / "model.pt", tmp_path / "was run"
    content = {"label_emb.weight": torch.zeros(4, 2), "more": Evil(sentinel)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(Evil(sentinel) if how == "torch" else content, path)
    with pytest.raises(WeightsError, match="nothing of it was run"):
        read_checkpoint(path)
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Evil(sentinel))).close()
    assert sentinel.exists(), "the file would have done harm"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_missing_file_and_one_of_an_optimizer_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_checkpoint(tmp_path / "model.pt")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "opt.pt")
    with pytest.raises(WeightsError, match="does not hold tensors by name"):
        read_checkpoint(tmp_path / "opt.pt")
    averages = {"shadow_params": [torch.zeros(2)], "decay": 0.9}
    torch.save(averages, tmp_path / "averages.pt")
    with pytest.raises(
        WeightsError, match=r"has no time_embed.0.weight, with whatever before it \(but shadow_params.0\)"
    ):
        read_checkpoint(tmp_path / "averages.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(WeightsError, match="does not hold tensors by name"):
        read_checkpoint(tmp_path / "tensor.pt")
