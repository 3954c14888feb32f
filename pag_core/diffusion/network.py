"""The C+1-class U-Net and its noising (schedule, loss), built from what their card says."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from pag_core.datasets.labelled_images import listed_classes
from pag_core.datasets.prepared import Dataset
from pag_core.errors import ParamsError, WeightsError
from pag_core.params.sections import DiffusionParams
from pag_core.pipeline.saved_network import SavedNetwork, load_network, load_weights

with warnings.catch_warnings():
    # guided_diffusion decorates with torch.cuda.amp.custom_fwd, which newer torch calls by another name
    warnings.simplefilter("ignore", FutureWarning)
    from guided_diffusion import gaussian_diffusion
    from guided_diffusion.gaussian_diffusion import (
        GaussianDiffusion,
        LossType,
        ModelMeanType,
        ModelVarType,
        get_named_beta_schedule,
    )
    from guided_diffusion.unet import UNetModel

KIND = "diffusion"
_resident: dict[tuple[bytes, torch.device], torch.Tensor] = {}


def _from_resident_table(table: NDArray[Any], timesteps: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The values of a schedule's table at `timesteps` int64 [B], float32 of `shape` [B, ...], from a copy on their device."""
    # by content, for the library computes one of its tables anew at each use
    key = (table.tobytes(), timesteps.device)
    if key not in _resident:
        _resident[key] = torch.from_numpy(table).to(timesteps.device)
    values = _resident[key][timesteps].float()
    return values.view(-1, *[1] * (len(shape) - 1)).expand(*shape)


# the library sends a table to the device whenever it needs a value of it, eighteen times a step where the variance is
# learned, and a GPU is waited for each time
gaussian_diffusion._extract_into_tensor = _from_resident_table
CARD_KEYS = (
    "channels", "channel_multipliers", "residual_blocks", "attention_resolutions", "attention_heads",
    "dropout", "learn_sigma", "schedule", "timesteps", "timestep_window",
)  # fmt: skip
# what only a model from elsewhere can have otherwise: its card says so. `head_channels` in place of the number of heads
OWN_FORM: dict[str, Any] = {
    # without it, GroupNorm of as many groups as channels would erase the label (an added constant per channel)
    "scale_shift_norm": True,
    "head_channels": None,
    "new_attention_order": False,
    "resblock_updown": False,
    "rescale_timesteps": True,
}


class _UNet(UNetModel):  # type: ignore[misc]  # the library has no types
    """guided_diffusion's U-Net, whose embedding of the noise level is computed on the device.

    The library's own forward pass makes a table of frequencies on the CPU and sends it, and a GPU is waited for each time.
    """

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The noise predicted in x float [B, C, H, W] at `timesteps` [B] under labels y int64 [B], as the library has it."""
        half = self.model_channels // 2
        orders = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * orders / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.label_emb(y)
        features, skipped = x.type(self.dtype), []
        for block in self.input_blocks:
            features = block(features, embedding)
            skipped.append(features)
        features = self.middle_block(features, embedding)
        for block in self.output_blocks:
            features = block(torch.cat([features, skipped.pop()], dim=1), embedding)
        predicted: torch.Tensor = self.out(features.type(x.dtype))
        return predicted


def architecture(params: DiffusionParams) -> dict[str, Any]:
    """The part of the parameters that a saved model must be rebuilt from."""
    plain = params.model_dump(mode="json")
    return {key: plain[key] for key in CARD_KEYS}


def require_fitting(card: dict[str, Any], image_shape: tuple[int, int, int]) -> None:
    """Raise ParamsError for images of `image_shape` [C, H, W] that the U-Net of `card` cannot halve, and for attention that
    does not fit.
    """
    card = OWN_FORM | card
    _, height, width = image_shape
    halvings = len(card["channel_multipliers"]) - 1
    if height != width:
        raise ParamsError(
            f"the diffusion model of the sources sbg and sbg_online takes square images, and these are {width}x{height} pixels "
            "(width x height); set prepare.image_size, to which the shorter side is scaled and the centre cropped, or another "
            "source"
        )
    if height % 2**halvings:
        raise ParamsError(
            f"diffusion.channel_multipliers {card['channel_multipliers']} halve the image {halvings} times, which images "
            f"of {height}x{width} pixels do not allow; set prepare.image_size or give fewer multipliers"
        )
    sides = [height >> level for level in range(halvings + 1)]
    if odd := [side for side in card["attention_resolutions"] if side not in sides]:
        raise ParamsError(
            f"diffusion.attention_resolutions names {odd[0]} pixels, but the U-Net of these images works at "
            f"{', '.join(map(str, sides))} pixels; name some of these"
        )
    heads, head_channels = card["attention_heads"], card["head_channels"]
    attending = {
        side: card["channels"] * factor for side, factor in zip(sides, card["channel_multipliers"], strict=True)
    }
    for side in (*card["attention_resolutions"], sides[-1]):  # its middle attends in any case
        if attending[side] % (head_channels or heads):
            chosen = f"attention_heads is {heads}" if head_channels is None else f"head_channels is {head_channels}"
            raise ParamsError(
                f"diffusion.{chosen}, which does not divide the {attending[side]} channels at {side} pixels; set "
                "another divisor, or other diffusion.channels"
            )


def build_network(card: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """guided_diffusion's U-Net with C+1 labels; label C stands for "no class" (Appendix G.2).

    Takes images float [B, C, H, W] in [-1, 1] with noise, timesteps and labels [B]; returns the predicted noise, with
    as many channels again for the variance where `learn_sigma`. Raises ParamsError as `require_fitting` does.
    """
    card = OWN_FORM | card
    channels, height, _ = image_shape
    require_fitting(card, image_shape)
    network: nn.Module = _UNet(
        image_size=height,
        in_channels=channels,
        model_channels=card["channels"],
        out_channels=channels * (2 if card["learn_sigma"] else 1),
        num_res_blocks=card["residual_blocks"],
        # the library names the levels that attend by their reduction factor, params.yaml by their side in pixels
        attention_resolutions=tuple(height // side for side in card["attention_resolutions"]),
        num_heads=card["attention_heads"],
        num_head_channels=card["head_channels"] or -1,
        dropout=card["dropout"],
        channel_mult=tuple(card["channel_multipliers"]),
        num_classes=classes + 1,
        use_scale_shift_norm=card["scale_shift_norm"],
        resblock_updown=card["resblock_updown"],
        use_new_attention_order=card["new_attention_order"],
    )
    return network


def build_noising(card: dict[str, Any]) -> GaussianDiffusion:
    """guided_diffusion's noising of images as `card` says: its schedule, the noise predicted, its variance fixed or learned."""
    return GaussianDiffusion(
        betas=get_named_beta_schedule(card["schedule"], card["timesteps"]),
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE if card["learn_sigma"] else ModelVarType.FIXED_LARGE,
        loss_type=LossType.RESCALED_MSE if card["learn_sigma"] else LossType.MSE,
        rescale_timesteps=(OWN_FORM | card)["rescale_timesteps"],
    )


def trained_timesteps(card: dict[str, Any]) -> tuple[int, int]:
    """The first and last timestep that a model of `card` is trained for."""
    low, high = card["timestep_window"] or (0, card["timesteps"] - 1)
    return low, high


def require_trained_for(timesteps: tuple[int, ...], card: dict[str, Any], place: Path) -> None:
    """Raise ParamsError where one of `sbg.timestep` lies outside those that the model of `card`, in `place`, is trained for."""
    low, high = trained_timesteps(card)
    for timestep in timesteps:
        if not low <= timestep <= high:
            raise ParamsError(
                f"params.yaml: sbg.timestep is {timestep}, {place} is trained for timesteps {low} to {high}; set one of these, "
                "or train it for others (diffusion.timestep_window)"
            )


def to_diffusion_range(images: torch.Tensor) -> torch.Tensor:
    """Images [0, 1] to the [-1, 1] that diffusion models work in."""
    return images * 2 - 1


class NoisePredictor:
    """A trained C+1-class model that predicts noise: the `eps(x_t, t, c)` of Eq. 8."""

    def __init__(self, card: dict[str, Any], network: nn.Module, device: torch.device) -> None:
        self.card = card
        self.noising = build_noising(card)
        self.network = network.to(device).eval().requires_grad_(False)
        self.device = device

    @property
    def no_class(self) -> int:
        """The extra label C."""
        return len(self.card["class_names"])

    @property
    def timesteps(self) -> tuple[int, int]:
        """The first and last timestep that the model was trained for."""
        return trained_timesteps(self.card)

    def noised(self, images: torch.Tensor, timestep: int, noise: torch.Tensor) -> torch.Tensor:
        """x_t of images float [B, C, H, W] in [0, 1] with standard normal `noise` of their shape."""
        keep, spread = self.noising.sqrt_alphas_cumprod[timestep], self.noising.sqrt_one_minus_alphas_cumprod[timestep]
        return float(keep) * to_diffusion_range(images) + float(spread) * noise

    def predicted_noise(self, noised_images: torch.Tensor, timestep: int, labels: torch.Tensor) -> torch.Tensor:
        """eps of x_t float [B, C, H, W] under labels int64 [B], of which C means "no class"."""
        rescaled = timestep * (1000.0 / self.noising.num_timesteps)
        scaled = rescaled if self.noising.rescale_timesteps else timestep
        timesteps = torch.full((len(noised_images),), float(scaled), device=noised_images.device)
        predicted: torch.Tensor = self.network(noised_images, timesteps, labels)
        return predicted[:, : noised_images.shape[1]]


def load_noise_predictor(folder: Path, dataset: Dataset, device: torch.device) -> tuple[NoisePredictor, SavedNetwork]:
    """A trained model, from this pipeline or from elsewhere, for the classes and image shape of `dataset`.

    Raises WeightsError if it is damaged or made for other classes or images.
    """
    saved = load_network(folder, KIND)
    if (
        tuple(saved.card["class_names"]) != dataset.class_names
        or tuple(saved.card["image_shape"]) != dataset.image_shape
    ):
        raise WeightsError(
            f"{folder} models the classes {listed_classes(saved.card['class_names'])} of images "
            f"{saved.card['image_shape']}; the dataset has {listed_classes(dataset.class_names)} of images "
            f"{list(dataset.image_shape)}: train one on this dataset (diffusion_checkpoint: data/diffusion)"
        )
    if absent := [key for key in CARD_KEYS if key not in saved.card["architecture"]]:
        raise WeightsError(
            f"{folder / 'card.json'} does not state {', '.join(absent)} of its architecture; make it again with the "
            "diffusion stage, or add the values that it was built with"
        )
    network = build_network(saved.card["architecture"], dataset.image_shape, dataset.classes)
    load_weights(network, saved.tensors, f"{folder} does not fit the network that its card describes")
    return NoisePredictor(
        {**saved.card["architecture"], "class_names": saved.card["class_names"]}, network, device
    ), saved
