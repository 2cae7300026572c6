# Sourced by the shell scripts: PYTHON, if it is not given, becomes the first Python that can run the package. If there is
# none, it is one that says how to install it.
find_python() {
    local root candidate
    root="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    for candidate in python python3 "$root/.venv/bin/python"; do
        if (cd "$root" && "$candidate" -c 'import run_from_checkout; run_from_checkout.prepare("shell")') >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    command -v python3 || echo python
}

PYTHON="${PYTHON:-$(find_python)}"
