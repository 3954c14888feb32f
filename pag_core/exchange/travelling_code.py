"""The code that travels with an exported classifier: what builds its network and loads it, turned into a package of its own."""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

from pag_core.classifiers.architectures import ARCHITECTURES, TIMM
from pag_core.pipeline.code_identity import CHECKOUT, PACKAGE, import_closure, imported_modules, own_code_files
from pag_core.pipeline.own_code import OWN

STANDALONE = "pag_classifier"  # the package that travels with the weights
LOADING = Path(PACKAGE) / "exchange" / "standalone" / "loading.py"
ATTACK = LOADING.with_name("attack.py")
IMPORT = re.compile(rf"^(\s*)from ({PACKAGE}(?:\.\w+)+) import", re.MULTILINE)
IMPORT_OF_OWN = re.compile(rf"^(\s*(?:from|import)) ({OWN}\b)", re.MULTILINE)


def write_code(folder: Path, arch: str, *, attack: bool) -> None:
    """Write the package that builds and loads the network, and with `attack` the program that attacks it again."""
    package = folder / STANDALONE
    package.mkdir()
    own = own_code_files(arch, "arch")
    for path in sorted(import_closure(CHECKOUT, LOADING) | own):
        target = package / (path if path.parts[0] == OWN else path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            target.write_text(_travelling(path), encoding="utf-8")
        else:
            shutil.copyfile(CHECKOUT / path, target)
    (package / "__init__.py").write_text(_travelling(LOADING), encoding="utf-8")
    if attack:
        (folder / "attack.py").write_text(_travelling(ATTACK), encoding="utf-8")
    shutil.copyfile(CHECKOUT / "LICENSE", folder / "LICENSE")


def packages_needed(arch: str) -> list[str]:
    """What a network is built from beside torch; for one of the user's, what the files that travel with it import."""
    if arch in ARCHITECTURES:
        return [package for package in [ARCHITECTURES[arch].package] if package is not None]
    if arch.startswith(TIMM):
        return ["timm"]
    files = [path for path in own_code_files(arch, "arch") if path.suffix == ".py"]
    imported = {
        name for path in files for name in imported_modules((CHECKOUT / path).read_text(encoding="utf-8"), path.parent)
    }
    roots = {name.partition(".")[0] for name in imported} - {"torch", OWN, PACKAGE, *sys.stdlib_module_names}
    installed = importlib.metadata.packages_distributions()
    return sorted({installed.get(root, [root])[0] for root in roots})


def _travelling(path: Path) -> str:
    """The code of a file of this project, its imports turned to the package that travels."""

    def turned(found: re.Match[str]) -> str:
        name = found[2].rsplit(".", 1)[-1]
        return f"{found[1]}from {STANDALONE if name == LOADING.stem else f'{STANDALONE}.{name}'} import"

    code = IMPORT.sub(turned, (CHECKOUT / path).read_text(encoding="utf-8"))
    return IMPORT_OF_OWN.sub(rf"\1 {STANDALONE}.\2", code)
