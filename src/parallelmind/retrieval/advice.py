"""Names in a text about changes, and which of them it tells to use instead of which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_QUOTED = re.compile(r"`[.~!@]*([A-Za-z_][\w.]*)(?:\([^`]*\))?`")
_IMPORT = re.compile(r"`?\bfrom ([A-Za-z_][\w.]*) import ([A-Za-z_]\w*)`?")
_ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:(?=`)")
_PLAIN_QUOTES = re.compile(r"(?<!\w)(['\"])(\.?[A-Za-z_][\w.]*(?:\([^'\"]*\))?)\1")
_BARE = re.compile(
    r"(?<![\w.`/:@-])\.?"
    r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[A-Za-z]\w*_\w+|[A-Z]\w*[a-z]\w*[A-Z]\w*|_\w+|[A-Za-z_]\w*(?=\(\)))"
    r"(?:\(\))?(?![\w`/@-]|\.\w)"
)
_NOT_NAMES = re.compile(r"\A(?:None|True|False|__init__|e\.g|i\.e)\Z|\.(?:py|rst|txt|md|cfg|toml|org|com|io)\Z", re.I)

_FILLER = (
    r"(?:[\s:]*(?:the|a|an|its|their|new|newer|old|previous|former|public|either|directly|simply|just|instead|of|class"
    r"|method|function|property|attribute|module|decorator|parameter|exception|(?:more|much|most|less) \w+)?[\s:]+)*"
    r"[\s(:]*"
)
_STRONG = re.compile(
    r"(?:in fav?ou?r of|(?:replaced|superseded|subsumed) (?:by|with)|replacement(?: is|:)|renamed(?: to| as)?"
    r"|mov(?:e|ed|ing)(?: \w+){0,4} (?:in)?to|merged into|now (?:called|named|in)|available in|identical to:?"
    r"|alias(?:es)? (?:of|for|to)|->|→|use instead:?|\bnew(?: name)?:|alternatives?:|migrate to|switch to"
    r"|import (?:it|them|this) (?:directly )?from)"
    + _FILLER + r"\Z",
    re.I,
)  # fmt: skip
_WEAK = re.compile(
    r"(?:\A|[.;:,(–—-]|\b(?:instead|please|should|must|and|can|to))\s*"
    r"(?:use|using|call|calling|import|importing|consider(?: using)?|prefer|see|customi[sz]e|access)\b"
    + _FILLER
    + r"\Z",
    re.I,
)
_IMPERATIVE = re.compile(
    r"(?:\A|[.;:,(–—-]|\b(?:please|should|must)|instead,?)\s*(?:instead,? )?(?:use|using|call|import)\b"
    + _FILLER
    + r"\Z",
    re.I,
)
_INSTEAD_AFTER = re.compile(r"\A[^.;]{0,60}\binstead\b(?! of)", re.I)
_PAIRED = re.compile(r"\A\W*(?:\w+\W+){0,2}?(?:to|by|with|as|into)\s" + _FILLER + r"\Z", re.I)
_CHANGING = re.compile(r"\b(?:renam\w*|replac\w*|mov(?:e|ed|ing)|chang(?:e|ed|ing))\s" + _FILLER + r"\Z", re.I)
_BACK = re.compile(
    r"\A\W*(?:\w+\W+){0,3}?(?:replaces|supersedes|formerly|previously|formerly known as|replacing)"
    r"\W*(?:known as|called|named)?\s?" + _FILLER + r"\Z",
    re.I,
)
_RATHER = re.compile(r"\A\W*(?:\w+\W+){0,3}?(?:instead of|rather than|in place of)\s" + _FILLER + r"\Z", re.I)
_TO_USE = re.compile(r"\b(?:use|using|call|calling|prefer|import|importing)\s" + _FILLER + r"\Z", re.I)
_PART_OF = re.compile(
    r"\b(?:support|argument|parameter|keyword|kwarg|option|setting|passing|behaviou?r|default|values?)s?\b[^.;]*"
    r"\b(?:in|of|to|for|from|on|with)\s+(?:the\s+)?\Z",
    re.I,
)  # fmt: skip
_JOINED = re.compile(
    r"\A(?:\(\))?`?\s*(?:,|,?\s*\b(?:and|or)\b|/)[\s`]*(?:the\s+)?(?:(?:class|function|method|property|attribute)\s+)?\Z"
)
_NEGATION = re.compile(r"\b(?:no longer|not|never|don't|cannot|without)\s+(?:\w+\s+){0,2}\Z", re.I)
_SENTENCES_BETWEEN = 2
_WORD = re.compile(
    r"(?:\buse|\busing|alternatives?:|fav?ou?r of|(?:replaced|superseded) (?:by|with)|renamed (?:to|as)|moved to"
    r"|switch to|migrate to|see)\s+(?:the\s+)?(?:new\s+)?(?!(?:it|this|that|them|one|the|another)\b)([A-Za-z_]\w*)"
    r"(?=\s+(?:instead|method|function|class|property|attribute|decorator)\b|\s*(?:[,;)]|\.(?!\w))|\s*\Z|\()",
    re.I,
)
_SEE = re.compile(r"\b(?:see|refer to)(?: also)?:? \Z", re.I)
_GOES_ON = re.compile(r"(?<=[.;]) (?=[A-Z`'\"])")
_CARRIED_ON = re.compile(r"\b(?:now|instead|will|can|includes?|provides?)\b", re.I)


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in a text."""

    name: str
    start: int
    end: int


def names_in(text: str) -> list[Mention]:
    """The names of a text that are quoted, or cannot be words of a sentence, in order."""
    found = [Mention(f"{match[1]}.{match[2]}", match.start(), match.end()) for match in _IMPORT.finditer(text)]
    imported = [(one.start, one.end) for one in found]
    for match in _QUOTED.finditer(text):
        if not any(start <= match.start() < end for start, end in imported):
            found.append(Mention(match.group(1).strip("."), match.start(), match.end()))
    taken = [(mention.start, mention.end) for mention in found]
    quoted = [match.span() for match in re.finditer(r"`[^`]*`", text)]
    for match in _BARE.finditer(text):
        if not any(start <= match.start() < end for start, end in (*taken, *quoted)):
            found.append(Mention(match.group(1), match.start(), match.end()))
    return sorted((one for one in found if not _NOT_NAMES.search(one.name)), key=lambda mention: mention.start)


def advised(said: str) -> list[list[str]]:
    """What the words by which something is deprecated tell to use: alternatives together, the plainest advice first."""
    text = _PLAIN_QUOTES.sub(r"`\2`", _ROLE.sub("", said))
    mentions = names_in(text)
    found = [
        [mentions[one].name for one in _group(text, mentions, place) if one >= place]
        for place, mention in enumerate(mentions)
        if _leads_to(text, mentions[place - 1].end if place else 0, mention)
    ]
    named = {name for group in found for name in group}
    found += [[match.group(1)] for match in _WORD.finditer(text) if match.group(1) not in named]
    if not found:  # "`a` is deprecated. `b` now does that."
        first = next(iter(_GOES_ON.finditer(text)), None)
        later = [one for one in mentions if first is not None and one.start >= first.end()]
        found = [[one.name] for one in later if _CARRIED_ON.search(text[one.end :])]
        found += [[one.name] for one in mentions if _SEE.search(text[: one.start])]
    if not found:  # the name, and what stands for it: "size; box or length"
        listed = (re.split(r" (?:or|and) |, ", part) for part in text.split("; ")[1:])
        found = [part for part in listed if all(name.isidentifier() and name[0] != "_" for name in part)]
    return found


def advised_instead(text: str, mentions: Sequence[Mention], place: int) -> list[str]:
    """The alternatives that the text tells to use instead of the mention at `place`."""
    subject = mentions[place]
    if is_advised(text, mentions, place) or _PART_OF.search(text[: subject.start]):
        return []
    group = _group(text, mentions, place)
    after = mentions[group[-1] + 1 :]
    for number, target in enumerate(after):
        between = text[mentions[group[-1]].end : target.start]
        if len(re.findall(r"[.;] (?=[A-Z`])", between)) > _SENTENCES_BETWEEN:
            break
        if not _leads_to(text, after[number - 1].end if number else mentions[group[-1]].end, target):
            continue
        in_parentheses = re.match(r"\A(?:\(\))?\s*\(", text[mentions[group[-1]].end :])
        if in_parentheses and subject is not mentions[group[-1]]:
            return []
        targets = [mentions[one].name for one in _group(text, mentions, group[-1] + 1 + number)]
        if len(group) == len(targets):
            return [targets[group.index(place)]]
        return targets if len(group) == 1 or len(targets) == 1 else []
    return _told_before(text, mentions[place - 1], subject) if place else []


def _told_before(text: str, before: Mention, subject: Mention) -> list[str]:
    """What is told to be used before it is said instead of what: `b` replaces `a`."""
    between = text[before.end : subject.start]
    is_told = _BACK.match(between) or (_RATHER.match(between) and _TO_USE.search(text[: before.start]))
    return [before.name] if is_told and not _NEGATION.search(text[: before.start]) else []


def is_advised(text: str, mentions: Sequence[Mention], place: int) -> bool:
    """Whether the mention at `place` is itself what is to be used."""
    return place > 0 and _leads_to(text, mentions[place - 1].end, mentions[place])


def _leads_to(text: str, start: int, target: Mention) -> bool:
    """Whether the words before a name tell to use it instead of one that stands before them."""
    between = text[start : target.start]
    if _STRONG.search(between):
        return True
    if _PAIRED.match(between) and _CHANGING.search(_before_mention(text, start)):
        return True
    if _IMPERATIVE.search(between):
        return not _NEGATION.search(between.rpartition(" ")[0])
    return bool(_WEAK.search(between) and _INSTEAD_AFTER.match(text[target.end :]))


def _before_mention(text: str, end: int) -> str:
    """What stands before the name that ends at `end`."""
    return re.sub(r"`[^`]*`\Z|[\w.]+(?:\(\))?\Z", "", text[:end])


def _group(text: str, mentions: Sequence[Mention], place: int) -> list[int]:
    """The places of the names that are listed with the one at `place`: `a`, `b` and `c`."""
    first = last = place
    while first and _JOINED.match(text[mentions[first - 1].end : mentions[first].start]):
        first -= 1
    while last + 1 < len(mentions) and _JOINED.match(text[mentions[last].end : mentions[last + 1].start]):
        last += 1
    return list(range(first, last + 1))
