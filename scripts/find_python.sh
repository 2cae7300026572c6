# Sourced by the shell scripts: PYTHON is the one that is given, else that of the active environment, else that of .venv
# in this checkout, else the first one on the path. A Python without the package says itself how to install it.
if [[ -z "${PYTHON:-}" ]]; then
    venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/.venv/bin/python"
    if [[ -z "${VIRTUAL_ENV:-}" && -x "$venv" ]]; then
        PYTHON="$venv"
    else
        PYTHON="$(command -v python || command -v python3 || echo python3)"
    fi
fi
