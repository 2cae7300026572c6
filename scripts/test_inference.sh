#!/usr/bin/env bash
# Try a model and its adapter on the commands of inference: generate, batch, and batch under torchrun.
#   bash scripts/test_inference.sh Qwen/Qwen2.5-0.5B-Instruct out/lora/mine_final.pth 8
# Further flags (--device cpu, --dtype float32, …) are passed on to every command.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: bash $0 BASE_MODEL LORA_PATH LORA_RANK [FLAGS]" >&2
    echo "  BASE_MODEL  hub name, local folder, or tiny (the bundled model)" >&2
    echo "  LORA_PATH   the adapter: a .pth file or a PEFT folder" >&2
    echo "  LORA_RANK   its rank, such as 8" >&2
    echo "  FLAGS       further flags for every command, such as --device cpu --dtype float32" >&2
    exit 2
fi

SCRIPTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$SCRIPTS/find_python.sh"
model=(--base_model "$1" --lora_path "$2" --lora_rank "$3" "${@:4}" --temperature 0 --max_new_tokens 16)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

check() { # check NAME COMMAND…: run it; if it fails, show what it said and end
    local name="$1"
    shift
    if "$@" >"$work/log" 2>&1; then
        echo "ok    $name"
    else
        sed 's/^/      /' "$work/log" >&2
        echo "FAIL  $name" >&2
        exit 1
    fi
}

complete() { # complete FILE: one answer for each of the 8 branches, in order, none of them an error
    "$PYTHON" - "$work/records.jsonl" "$1" <<'PYTHON'
import json
import sys

records, rows = ([json.loads(line) for line in open(path, encoding="utf-8")] for path in sys.argv[1:])
asked = [branch for record in records for branch in record["branches"]]
if [row["input"] for row in rows] != asked:
    sys.exit(f"{sys.argv[2]}: {len(rows)} rows instead of the {len(asked)} branches in their order")
if errors := [row["error"] for row in rows if row["output"] is None]:
    sys.exit(f"{sys.argv[2]}: {len(errors)} branches without an answer: {errors[0]}")
PYTHON
}

batch() { # batch FILE LAUNCHER…: answer the records
    local out="$1"
    shift
    "$@" "$SCRIPTS/parallel_inference_hf_lora.py" "${model[@]}" --data_path "$work/records.jsonl" --out_path "$out" &&
        complete "$out"
}

cat >"$work/records.jsonl" <<'RECORDS'
{"main": "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue.\n", "branches": ["How old is Dan?", "How much does the hat cost?"]}
{"main": "Story: Tina counted 36 coins. Rosa turned 88 this year.\n", "branches": ["How many coins did Tina count?", "How old is Rosa?"]}
{"main": "故事：小明今年十二岁。\n", "branches": ["小明几岁？", "How old is 小明? 🙂"]}
{"main": "", "branches": ["One, two, three,", "The sky is"]}
RECORDS

check "generate" "$PYTHON" "$SCRIPTS/inference_hf_lora.py" --mode generate "${model[@]}" --prompt "How old is Dan?"
check "batch" batch "$work/alone.jsonl" "$PYTHON"
if "$PYTHON" -c "import torch.distributed as d, sys; sys.exit(not d.is_available())"; then
    check "batch under torchrun, 2 processes" \
        batch "$work/together.jsonl" "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 2
else
    echo "skip  batch under torchrun: this torch is built without torch.distributed"
fi
echo "all checks passed"
