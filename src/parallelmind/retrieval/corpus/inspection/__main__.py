"""Describe a package on standard output, a JSON object a line.

    python -I -S __main__.py REQUEST     a JSON object; `runtime.inspect_package` writes it

{"importing": name} comes before each module; then the head with the version of Python and the modules that failed, an
{"object"} for each that has a text of its own, a {"namespace"} for each module, class and instance that has names
below it, and {"complete": true}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from importlib.machinery import ModuleSpec

_NAME = "parallelmind_inspection"  # a name that no package has


def main() -> None:
    request = json.loads(sys.argv[1])
    _be_a_package()
    importing = importlib.import_module(_NAME + ".importing")
    description = importlib.import_module(_NAME + ".description")
    namespaces = importlib.import_module(_NAME + ".namespaces")

    results = importing.keep_streams()
    finders = list(sys.meta_path)
    sys.path[:0] = request["folders"]
    warnings.simplefilter("ignore")
    importer = importing.Importer(request, results)
    importer.run()
    results.write('{"importing": ""}\n')
    results.flush()
    described = description.Description(request["package"])
    described.run()
    known = namespaces.Namespaces(request["package"], described, request["seconds"])
    known.run([finder for finder in sys.meta_path if finder not in finders])
    head = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "errors": importer.errors,
        "warnings": importer.warnings,
    }
    results.write(json.dumps(head) + "\n")
    for row in described.rows():
        results.write(json.dumps({"object": row}) + "\n")
    for row in known.rows():
        results.write(json.dumps({"namespace": row}) + "\n")
    results.write('{"complete": true}\n')
    results.flush()
    os._exit(0)  # no atexit handlers, no waiting for threads of the package


def _be_a_package() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    spec: ModuleSpec | None = importlib.util.spec_from_file_location(
        _NAME, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[_NAME])


if __name__ == "__main__":
    main()
