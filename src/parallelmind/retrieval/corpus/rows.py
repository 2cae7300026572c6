"""The rows of a corpus, from the objects of a package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from parallelmind.retrieval.corpus.calls import only_call
from parallelmind.retrieval.corpus.deprecation import deprecation_of
from parallelmind.retrieval.corpus.objects import PackageObject, is_public
from parallelmind.retrieval.corpus_rows import CorpusRow, Example, Mention
from parallelmind.retrieval.signatures import bounded_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The archive that rows come from."""

    distribution: str
    version: str
    wheel: str
    wheel_sha256: str


def docstring_rows(objects: Mapping[str, PackageObject], origin: Origin) -> Iterator[CorpusRow]:
    """A row for each object that has a public name, sorted by path."""
    for item in _public(objects.values()):
        yield _row(item, origin)


def source_rows(objects: Mapping[str, PackageObject], origin: Origin) -> Iterator[CorpusRow]:
    """A row for each object that has a public name and source code, sorted by path."""
    for item in _public(objects.values()):
        if item.code:
            yield replace(_row(item, origin), doc=_clean(item.code), source="static", examples=(), mentions=())


def _public(objects: Iterable[PackageObject]) -> list[PackageObject]:
    return sorted((item for item in objects if any(map(is_public, item.names))), key=lambda item: item.path)


def _row(item: PackageObject, origin: Origin) -> CorpusRow:
    aliases = {name for name in item.names if is_public(name)} - {item.path}
    return CorpusRow(
        path=_clean(item.path),
        aliases=tuple(_clean(name) for name in sorted(aliases, key=lambda name: (name.count("."), len(name), name))),
        doc=_clean(item.doc),
        type=_clean(item.type),
        signature=_clean(bounded_signature(item.signature)),
        parameters=item.parameters,
        deprecated=_clean(deprecation_of(item)),
        calls=_clean(only_call(item)),
        home="" if _is_below(item.home, item.path.partition(".")[0]) else _clean(item.home),
        members=tuple(_clean(name) for name in sorted(item.members)),
        source=item.source,
        place=_clean(item.place),
        examples=tuple(Example(*map(_clean, one)) for one in item.examples),
        mentions=tuple(Mention(*map(_clean, one)) for one in item.mentions),
        uses=item.uses,
        distribution=origin.distribution,
        version=origin.version,
        wheel=origin.wheel,
        wheel_sha256=origin.wheel_sha256,
    )


def _is_below(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
