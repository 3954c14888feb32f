"""The vision transformer (Dosovitskiy et al., 2021) of Appendix G.2: 6.3 million parameters, for CIFAR-10."""

from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn

from pag_core.classifiers.patches import patch_side
from pag_core.errors import ParamsError

HEADS = 12
# the MLP is as wide as the embedding, which makes 6.3 million parameters; the usual 4 would make 12.5
MLP_RATIO = 1.0


def vision_transformer(
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    activation: type[nn.Module],
    depth: int = 7,
    width: int = 384,
    patch_size: int | None = None,
) -> nn.Module:
    """timm's vision transformer: `depth` blocks of embedding size `width`, 12 heads, a class token, learned positions.

    Raises ParamsError for a width that the heads do not divide and for patches that do not fill `image_shape` [C, H, W].
    """
    if width % HEADS:
        raise ParamsError(
            f"params.yaml: classifier.width is {width}; the {HEADS} heads of vit need a multiple of {HEADS} (or null: 384)"
        )
    channels, height, image_width = image_shape
    network: nn.Module = VisionTransformer(
        img_size=(height, image_width),
        patch_size=patch_side(patch_size, image_shape),
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        depth=depth,
        num_heads=HEADS,
        mlp_ratio=MLP_RATIO,
        act_layer=activation,
    )
    for module in network.modules():
        if isinstance(module, Attention):
            # fused kernels have no second derivative, which Eq. 4 needs
            module.fused_attn = False  # type: ignore[misc]
    return network
