"""Label names of many package versions by asking each version, and write the labels to examples/retrieval/truth.

    python benchmarks/truth/label.py --environments /tmp/environments

Makes the environments that are missing (versions.yaml says which), draws names with a fixed seed, adds those of
replaced.yaml and imagined.yaml, and asks for all of them. What cannot be decided (a module that fails at import) gets
no label.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from truth.candidates import Walked, drawn, sample_by_module, to_scan
from truth.environments import Environment, environments, read_yaml

OUTPUT = Path(__file__).parents[2] / "examples" / "retrieval" / "truth"
SEED = 16
PUBLIC_SAMPLE = 45
DEPRECATED_PER_VERSION, ENDED_PER_VERSION, IMAGINED_PER_VERSION = 7, 3, 6
REPLACED_PER_VERSION, STILL_PER_VERSION = 16, 3
_INSTEAD = re.compile(
    r"(?:use|using|favou?r of|replaced (?:by|with)|renamed to|moved to|superseded by)\s+"
    r"(?:the\s+)?(?::\w+(?::\w+)*:)?[`'\"~.]*([A-Za-z_][\w.]*)",
    re.IGNORECASE,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True, help="folder of the environments")
    args = parser.parse_args()
    everything = list(environments(args.environments))
    walks: dict[tuple[str, str], Walked] = {}
    unimportable = {}
    for place in everything:
        place.install()
        walks[place.package, place.version], unimportable[place.package, place.version] = place.walk()
    labels: list[dict[str, Any]] = []
    public = []
    for place in everything:
        others = [walk for key, walk in walks.items() if key[0] == place.package and key[1] != place.version]
        walked = walks[place.package, place.version]
        chance = random.Random(f"{SEED} {place.package} {place.version}")
        rows = list(Labeller(place, walked, others, chance).rows())
        labels += rows
        public.append(public_names(place, walked, unimportable[place.package, place.version], chance))
        print(place.package, place.version, dict(Counter(row["label"] for row in rows)), file=sys.stderr, flush=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write(OUTPUT / "labels.jsonl", labels)
    write(OUTPUT / "public_names.jsonl", public)
    print(f"{len(labels)} labels of {len(public)} versions: {dict(Counter(row['label'] for row in labels))}")


class Labeller:
    """The labels of one version."""

    def __init__(self, place: Environment, walked: Walked, others: list[Walked], chance: random.Random) -> None:
        self._place, self._chance = place, chance
        self._replaced: dict[str, list[str]] = read_yaml("replaced").get(place.package, {})
        ended = [name for name, new in self._replaced.items() if not new]
        imagined: list[str] = read_yaml("imagined").get(place.package, [])
        self._why = {name: "replaced" for name, new in self._replaced.items() if new}
        self._why |= dict.fromkeys(chance.sample(ended, min(ENDED_PER_VERSION, len(ended))), "ended")
        self._why |= dict.fromkeys(chance.sample(imagined, min(IMAGINED_PER_VERSION, len(imagined))), "imagined")
        for name, why in drawn(walked, others, chance):
            self._why.setdefault(name, why)
        self._scanned = to_scan(walked)

    def rows(self) -> Iterator[dict[str, Any]]:
        answers = self._place.probe([*self._why, *self._scanned])
        deprecated = [name for name in self._scanned if "deprecated" in answers[name] and name not in self._why]
        for name in sample_by_module(deprecated, DEPRECATED_PER_VERSION, self._chance):
            self._why.setdefault(name, "deprecated")
        wanted = self._thinned({name: answers[name] for name in self._why if answers[name]["status"] != "unknown"})
        possible = {name: self._possible_replacements(name, found) for name, found in wanted.items()}
        exist = self._place.probe([new for names in possible.values() for new in names])
        for name, found in sorted(wanted.items()):
            usable = [new for new in possible[name] if exist[new]["status"] in ("present", "instance")]
            yield self._row(name, found, [new for new in usable if "deprecated" not in exist[new]])

    def _thinned(self, answers: dict[str, Any]) -> dict[str, Any]:
        """The table has many names for some packages, and many that a version simply has."""
        ended = [name for name, found in answers.items() if self._why[name] == "replaced" and _is_over(found)]
        still = [name for name, found in answers.items() if self._why[name] == "replaced" and not _is_over(found)]
        kept = {
            *self._chance.sample(ended, min(REPLACED_PER_VERSION, len(ended))),
            *self._chance.sample(still, min(STILL_PER_VERSION, len(still))),
        }
        return {name: found for name, found in answers.items() if self._why[name] != "replaced" or name in kept}

    def _possible_replacements(self, name: str, found: dict[str, Any]) -> list[str]:
        """From the table and, of deprecated names, from what is said about them; they are then asked for."""
        names = list(self._replaced.get(name, []))
        if not names and "deprecated" in found:
            for said in _INSTEAD.findall(found["deprecated"][1]):
                said = said.strip(".")
                parents = name.split(".")[:-1]
                names += [".".join([*parents[:depth], said]) for depth in range(len(parents), -1, -1)]
        return [new for new in names if new != name and "." in new and new not in found.get("same", ())]

    def _row(self, name: str, found: dict[str, Any], replacement: list[str]) -> dict[str, Any]:
        label = "deprecated" if "deprecated" in found else found["status"]
        row = {
            "package": self._place.package,
            "version": self._place.version,
            "name": name,
            "label": label,
            "kind": self._why[name],
        }
        if label in ("present", "deprecated"):
            row |= {"same": found["same"], "doc": found["doc"][:40]}
        if label == "deprecated":
            row |= {"how": found["deprecated"][0], "said": found["deprecated"][1][:60]}
        if label in ("absent", "deprecated"):
            row["replacement"] = replacement[:2]
        return {field: value for field, value in row.items() if value}


def _is_over(found: dict[str, Any]) -> bool:
    return found["status"] == "absent" or "deprecated" in found


def public_names(
    place: Environment, walked: Walked, unimportable: dict[str, str], chance: random.Random
) -> dict[str, Any]:
    """Counts, and a sample in which every origin has its share."""
    groups: dict[str, list[str]] = {}
    for name, _, origin in walked:
        groups.setdefault(origin, []).append(name)
    total = sum(map(len, groups.values()))
    sample = {
        origin: sorted(chance.sample(names, min(len(names), max(3, PUBLIC_SAMPLE * len(names) // total))))
        for origin, names in groups.items()
    }
    counts = {origin: len(names) for origin, names in groups.items()}
    return {
        "package": place.package,
        "version": place.version,
        "counts": counts,
        "sample": sample,
        "unimportable": sorted(unimportable),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
