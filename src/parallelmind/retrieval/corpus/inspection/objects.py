"""What can be asked of any object without knowing what it is."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any, Sequence  # noqa: UP035 - as Python 3.7 has them

SKIPPED_MODULES = {"tests", "test", "conftest", "_tests", "setup", "__main__"}
PROPERTIES = (property, types.GetSetDescriptorType, types.MemberDescriptorType)
PLAIN = (bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset, type(None), type(Ellipsis))


METHOD_TYPES = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)


def is_a(value: Any, kinds: Any) -> bool:
    """`isinstance` by what an object is and not by what it says: proxies answer for another, or raise an error."""
    return issubclass(type(value), kinds)


def is_routine(value: Any) -> bool:
    """`inspect.isroutine`, by what an object is."""
    is_descriptor = hasattr(type(value), "__get__") and not hasattr(type(value), "__set__")
    return is_a(value, METHOD_TYPES) or (is_descriptor and not is_a(value, type))


def is_public(name: str) -> bool:
    parts = name.split(".")
    return all(part.isidentifier() and not part.startswith("_") and part not in SKIPPED_MODULES for part in parts)


def is_below(name: str, package: str) -> bool:
    """Whether a dotted name is that of a package or of something in it."""
    return name == package or name.startswith(package + ".")


def home_module(value: Any) -> str:
    """The module that defines an object, as it says; "" if there is none."""
    # Of old compiled modules only the last part of the name is there: numpy.random.RandomState says "mtrand".
    home = getattr(sys.modules.get(str(getattr(value, "__module__", None))), "__name__", None)
    return home if isinstance(home, str) else ""


def in_package(cls: type, package: str) -> bool:
    return is_below(home_module(cls), package)


def home_of(value: Any) -> str:
    """Where an object says it is defined, if it can be found there; else ""."""
    home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(home, str) or not isinstance(name, str) or "<" in name:
        return ""
    found = sys.modules.get(home)
    for part in name.split("."):
        found = getattr(found, part, None)
    return home + "." + name if found is value else ""


def public_home_of(value: Any) -> str:
    """Where an object is defined, or the public package above a private module that passes it on."""
    home = home_of(value)
    module, _, last = home.rpartition(".")
    above = module
    while above and not is_public(above):
        above = above.rpartition(".")[0]
    if above == module or not above:
        return home
    return above + "." + last if getattr(sys.modules.get(above), last, None) is value else home


def accessed(cls: type, member: str) -> Any:
    try:
        return getattr(cls, member)
    except BaseException:
        return None


def own_doc(value: Any) -> str | None:
    doc = getattr(value, "__doc__", None)
    return doc if isinstance(doc, str) and doc != getattr(type(value), "__doc__", None) else None


def inherited_doc(value: Any, member: str, owners: Sequence[type]) -> str:
    for candidate in [value] + [vars(owner)[member] for owner in owners[1:]]:
        doc = clean_doc(getattr(candidate, "__doc__", None))
        if doc and doc != clean_doc(type(candidate).__doc__):
            return doc
    return ""


def clean_doc(doc: Any) -> str:
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def deprecation(value: Any) -> str:
    """What an object says about its end by PEP 702; "" if it says nothing."""
    try:
        said = vars(value).get("__deprecated__") if is_a(value, type) else getattr(value, "__deprecated__", None)
    except BaseException:
        return ""
    return said if isinstance(said, str) else "deprecated" if said is True else ""
