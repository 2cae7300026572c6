# Sourced by the shell scripts: PYTHON, if it is not given, becomes the first Python that can run the package. If there is
# none, the script ends with how to install it.
ROOT="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

runs_package() { # runs_package PYTHON: silent if it does, else its message says what to do
    (cd "$ROOT" && "$1" -c 'import run_from_checkout; run_from_checkout.prepare("__main__")') >/dev/null
}

if [[ -z "${PYTHON:-}" ]]; then
    for candidate in python python3 "$ROOT/.venv/bin/python"; do
        if runs_package "$candidate" 2>/dev/null; then
            PYTHON="$candidate"
            break
        fi
    done
fi
if [[ -z "${PYTHON:-}" ]]; then
    if PYTHON="$(command -v python3 || command -v python)"; then
        runs_package "$PYTHON" || exit 1
    fi
    echo "no Python was found (python, python3, $ROOT/.venv/bin/python): install Python 3.11 or newer, or set PYTHON" >&2
    exit 1
fi
