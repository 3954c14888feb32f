"""How an image is cut into the patches of a vision transformer or mixer."""

import math

from pag_core.errors import ParamsError

PATCHES_A_SIDE = 8  # 64 tokens: patches of 4 pixels at 32x32, 8 at 64x64, 12 at 96x96


def patch_side(patch_size: int | None, image_shape: tuple[int, int, int]) -> int:
    """The patch's side in pixels; None takes an eighth of the image's shorter side.

    Raises ParamsError if such patches do not fill images of `image_shape` [C, H, W].
    """
    _, height, width = image_shape
    fitting = math.gcd(height, width)
    if patch_size is None and fitting % PATCHES_A_SIDE == 0:
        patch_size = min(height, width) // PATCHES_A_SIDE
    if patch_size is None or fitting % patch_size:
        choices = ", ".join(str(side) for side in range(1, fitting + 1) if fitting % side == 0)
        given = "null, an eighth of the side" if patch_size is None else patch_size
        raise ParamsError(
            f"params.yaml: classifier.patch_size is {given}; such patches do not fill images of {height}x{width} "
            f"pixels: choose one of {choices}"
        )
    return patch_size
