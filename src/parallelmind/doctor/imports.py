"""Whether every package of the project imports, and the documented import paths give the documented names."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from parallelmind.doctor.check import Check, CheckFailedError, NotApplicableError, Subject
from parallelmind.doctor.versions import Declared

DOCUMENTED = {
    "scripts.inference_hf_lora": (
        "load_model_with_lora", "generate_text", "auto_pair_indices",
        "_prepare_pos2d", "_set_prompt_pos2d", "_inject_pos2d_hook",
    ),
    "model.model_lora": ("apply_lora", "load_lora", "save_lora"),
    "parallel.columnar": (
        "patch_model_with_interleaved_2d_rope", "set_rope_pos2d", "build_columnar_causal_mask", "auto_pair_indices",
        "Interleaved2DRoPE",
    ),
    "trainer.train_hf_lora": ("auto_pair_indices",),
    "trainer.train_hf_parallel_lora": ("auto_pair_indices",),
}  # fmt: skip
"""The import paths of the documents, and the names that each has."""

_REINSTALL = (
    "Install ParallelMind again: pip install --force-reinstall --no-deps parallelmind; in a checkout, pip install -e ."
)


def checks(subject: Subject) -> list[Check]:
    own = subject.package.name
    packages = [item.name for item in pkgutil.iter_modules([str(subject.package)]) if item.name != "__main__"]
    restore = "Restore the file from the repository: git checkout -- "
    return [
        Check(own, partial(_names, own), _REINSTALL),
        *(Check(f"{own}.{name}", partial(_import_all, subject, f"{own}.{name}"), _REINSTALL) for name in packages),
        *(
            Check(path, partial(_documented, subject, path, names), restore + path.replace(".", "/") + ".py")
            for path, names in DOCUMENTED.items()
        ),
    ]


def _import_all(subject: Subject, package: str) -> str:
    """Import a package with all of its modules."""
    module = importlib.import_module(package)
    names = [item.name for item in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{package}.")]
    without: set[str] = set()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            extra = Declared.by(subject).extra_of_module(error.name or "")
            if extra is None:
                raise
            without.add(extra)
    if without:
        raise NotApplicableError(f"in part: the rest needs pip install 'parallelmind[{','.join(sorted(without))}]'")
    return f"{len(names)} modules" if names else "imported"


def _documented(subject: Subject, path: str, names: Sequence[str]) -> str:
    root = str(subject.checkout_root())
    # First, since other programs have packages called scripts or model too.
    sys.path.insert(0, root)
    try:
        found = _names(path, names)
    finally:
        sys.path.remove(root)
    file = str(sys.modules[path].__file__)
    if not Path(file).resolve().is_relative_to(root):
        raise CheckFailedError(f"it is {file}, another program's", "Import it before the other program's package")
    return found


def _names(path: str, names: Sequence[str] | None = None) -> str:
    """Look for the names in a module; None: those of its `__all__`."""
    module = importlib.import_module(path)
    names = module.__all__ if names is None else names
    if missing := [name for name in names if not hasattr(module, name)]:
        raise CheckFailedError(f"it has no {', '.join(missing)}")
    return ", ".join(name for name in names if not name.startswith("_"))
