"""A Python that has torch, safetensors and pyautoattack, but neither this project nor most of what it needs."""

import subprocess
import sys

# with these refused, only torch, what torch needs, safetensors and pyautoattack are left
REFUSED = {
    "pag_core", "zarr", "numcodecs", "pydantic", "dvc", "dvclive", "foolbox", "eagerpy", "lightning_fabric",
    "guided_diffusion", "typer", "yaml", "sklearn", "scipy", "PIL", "tqdm", "matplotlib", "torchvision", "timm",
}  # fmt: skip
WITHOUT = f"""
import sys
refused, finders = {REFUSED!r}, list(sys.meta_path)
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            return None
        found = (finder.find_spec(name, path, target) for finder in finders)
        return next(filter(None, found), None)
sys.meta_path[:] = [Without()]
"""


def outside(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program where neither this project nor most of its dependencies can be imported."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + program, *arguments], cwd="/", capture_output=True, text=True, check=False
    )
