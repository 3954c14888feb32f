"""MLP-Mixer (Tolstikhin et al., 2021) in the size for CIFAR-10 that Appendix C follows: 1.1 million parameters."""

from timm.models.mlp_mixer import MlpMixer
from torch import nn

from pag_core.classifiers.patches import patch_side
from pag_core.errors import ParamsError

# hidden sizes of the MLPs over tokens and over channels, per unit of width: 64 and 512 at 128
MLP_RATIOS = (0.5, 4.0)


def mlp_mixer(
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    activation: type[nn.Module],
    depth: int = 8,
    width: int = 128,
    patch_size: int | None = None,
) -> nn.Module:
    """timm's MLP-Mixer: `depth` blocks of embedding size `width`, mean over tokens, one linear layer.

    Raises ParamsError for a width below 2 and for patches that do not fill `image_shape` [C, H, W].
    """
    if width < 2:
        raise ParamsError(f"params.yaml: classifier.width is {width}; mixer needs 2 or more (or null: 128)")
    channels, height, image_width = image_shape
    network = MlpMixer(
        img_size=(height, image_width),  # type: ignore[arg-type]  # passed on to PatchEmbed, which takes both sides
        patch_size=patch_side(patch_size, image_shape),
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        num_blocks=depth,
        mlp_ratio=MLP_RATIOS,
        act_layer=activation,
    )
    # timm starts the head at zero, so that every input-gradient is zero and its cosine (Eq. 5) undefined
    nn.init.trunc_normal_(network.get_parameter("head.weight"), std=0.02)
    return network
