"""Which project, which corpora, and whether what is missing may be built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from parallelmind.retrieval.documentation import Documentation
from parallelmind.retrieval.project.reading import read_projects
from parallelmind.retrieval.ranking import Ranker
from parallelmind.settings.setting import Flag, Setting, Settings


@dataclass(frozen=True, kw_only=True)
class ProjectOptions(Settings):
    """What the commands for coding agents have in common; the names are the flags."""

    corpus_path: Annotated[
        Path, Setting("folder of corpora, made by parallelmind corpus build", "corpus", flag=Flag(metavar="DIR"))
    ]
    requirements: Annotated[
        tuple[str, ...],
        Setting(
            "what says the versions: a lockfile (uv.lock, poetry.lock, pdm.lock, pylock.toml, Pipfile.lock), a "
            "requirements file, the output of pip freeze, pyproject.toml, a project's folder, a virtual environment, "
            "an interpreter, or `current` for the environment of this command; the first that names a package counts",
            "corpus", flag=Flag(metavar="PATH"),
        ),
    ] = ()  # fmt: skip
    index_path: Annotated[
        Path | None,
        Setting(
            "folder for the indexes", "corpus", flag=Flag(metavar="DIR"), default="in your cache",
        ),
    ] = None  # fmt: skip
    build: Annotated[
        bool,
        Setting("build missing corpora: downloads packages, and imports them in a sandbox (SECURITY.md)", "corpus"),
    ] = False

    def documentation(self, ranker: Ranker | None = None) -> Documentation:
        """The corpora, with the versions of the project; searched by words, unless a `ranker` is given.

        Raises:
            DataError: what says the versions cannot be read, or is wrong.
        """
        project = read_projects(self.requirements) if self.requirements else None
        return Documentation(self.corpus_path, project, index_path=self.index_path, ranker=ranker)
