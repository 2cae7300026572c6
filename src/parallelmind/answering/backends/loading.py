"""Find the class that `--backend file.py:ClassName` or `--backend module:ClassName` names."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from parallelmind.answering.backends.base import QueryBasedInference
from parallelmind.errors import SettingsError

_FORM = "expected file.py:ClassName or module:ClassName"


def load_backend_class(spec: str) -> type[QueryBasedInference]:
    """Import a user's subclass of `QueryBasedInference`; its code runs, so name only what you trust.

    The folder of the file (or for a module the current one) is searched last for what the file imports.

    Raises:
        SettingsError: the file, module or class is not there, fails to import, or does not fit.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise SettingsError(f"--backend is {spec!r}; {_FORM}.")
    module = _load_file(Path(source), spec) if source.endswith(".py") else _load_module(source, spec)
    found = getattr(module, name, None)
    if found is None:
        classes = ", ".join(_subclasses(module)) or "none"
        raise SettingsError(
            f"--backend {spec}: there is no {name} (subclasses of QueryBasedInference there: {classes})."
        )
    if not (isinstance(found, type) and issubclass(found, QueryBasedInference)):
        raise SettingsError(f"--backend {spec}: {name} is no subclass of QueryBasedInference; derive it from that.")
    if found.generate_answer is QueryBasedInference.generate_answer:
        raise SettingsError(
            f"--backend {spec}: {name} does not override generate_answer(self, query, context, retrieval_method)."
        )
    return found


def _load_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise SettingsError(f"--backend {spec}: the file {path} does not exist.")
    path = path.resolve()
    # A name of its own, the same in every worker: classes of the file can be pickled, and two files may share a stem.
    name = f"parallelmind_backend_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    _search_also(path.parent)
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec
    assert module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _import_failed(spec, error) from error
    return module


def _load_module(name: str, spec: str) -> ModuleType:
    _search_also(Path.cwd())
    try:
        return importlib.import_module(name)
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            raise SettingsError(f"--backend {spec}: there is no module {error.name}; {_FORM}.") from error
        raise _import_failed(spec, error) from error


def _import_failed(spec: str, error: BaseException) -> BaseException:
    if isinstance(error, Exception | SystemExit):  # a script that is no module may call sys.exit
        return SettingsError(f"--backend {spec} cannot be imported: {type(error).__name__}: {error}")
    return error


def _search_also(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _subclasses(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, QueryBasedInference) and value is not QueryBasedInference
    ]
