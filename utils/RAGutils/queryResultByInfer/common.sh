# For the scripts beside this file: which Python runs, where default files are, and what is said when one is missing.
# They set SCRIPT to their own name.

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
CHECKOUT="$(cd "$HERE/../../.." && pwd)"
ASSETS="$CHECKOUT/src/parallelmind/assets/rag"
MISSING=()

# A relative path that is not in the current folder but in the checkout is taken from there.
locate() {
    if [[ "$1" != /* && ! -e "$1" && -e "$CHECKOUT/$1" ]]; then echo "$CHECKOUT/$1"; else echo "$1"; fi
}

# What is made from a file that was taken from the checkout goes to the checkout as well.
beside() {
    if [[ "$1" != /* && "$1" != *://* && "$2" != "$3" ]]; then echo "$CHECKOUT/$1"; else echo "$1"; fi
}

# need_file VARIABLE WHAT: notes that the file or folder which VARIABLE names is not there.
need_file() {
    local path="${!1}"
    if [[ "$path" != *://* && ! -e "$path" ]]; then MISSING+=("$path does not exist: set $1 to $2"); fi
}

# need_model ARGUMENT...: notes that no model is named, neither by MODEL_PATH nor by an argument.
need_model() {
    if [[ -z "$MODEL_PATH" && " $* " != *" --backend"* && " $* " != *" --model_path"* ]]; then
        MISSING+=("MODEL_PATH is not set: it is a folder, a hub name, or the model's name at the server; tiny is the bundled model")
    fi
}

# tell_missing WORKING_COMMAND HINT...: says at once what is missing, and ends.
tell_missing() {
    if ((${#MISSING[@]} == 0)); then return; fi
    {
        echo "$SCRIPT cannot start:"
        printf '  %s\n' "${MISSING[@]}"
        echo "Variables are set before the command, or at the top of $HERE/$SCRIPT."
        printf '%s\n' "${@:2}"
        echo "This works as it stands, on the bundled model, questions and documentation:"
        echo "  $1"
    } >&2
    exit 2
}

# As commands show them: a path may hold spaces.
SHOWN_HERE="$(printf '%q' "$HERE")"
SHOWN_ASSETS="$(printf '%q' "$ASSETS")"

source "$CHECKOUT/scripts/find_python.sh"
SHOWN_PYTHON="$(printf '%q' "$PYTHON")"
