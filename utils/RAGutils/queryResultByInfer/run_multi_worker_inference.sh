#!/usr/bin/env bash
# Answer questions over contexts with NUM_WORKERS workers, each with its share of the GPUs.
#
#   bash run_multi_worker_inference.sh                                    # with what stands below
#   MODEL_PATH=Qwen/Qwen2.5-0.5B-Instruct NUM_WORKERS=4 bash run_multi_worker_inference.sh
#
# Further flags of `parallelmind answer` may follow. Interrupted or killed, the same command goes on where it was.
set -euo pipefail

# ---- Edit these, or set them in the environment, which wins. ----
CONTEXTS_FILE="${CONTEXTS_FILE:-data/temp/contexts/batch_contexts.jsonl}" # JSONL, of batch_context_generator.py
OUTPUT_FILE="${OUTPUT_FILE:-data/temp/inference/results.jsonl}"
MODEL_PATH="${MODEL_PATH:-}"                         # folder, hub name, or the model's name at the server
INFERENCE_TYPE="${INFERENCE_TYPE:-local}"            # local, huggingface, togetherai or openai
NUM_WORKERS="${NUM_WORKERS:-1}"
TOTAL_GPUS="${TOTAL_GPUS:-}"                         # the first so many GPUs; empty: all of them
GPUS_PER_WORKER="${GPUS_PER_WORKER:-}"               # empty: TOTAL_GPUS / NUM_WORKERS
MAX_SAMPLES_PER_WORKER="${MAX_SAMPLES_PER_WORKER:-}" # empty: all
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-512}"
TEMPERATURE="${TEMPERATURE:-0.1}"                    # 0 is greedy
TOP_P="${TOP_P:-}"                                   # empty: 0.95
PYTHON="${PYTHON:-}"                                 # empty: python, python3, or that of the checkout's .venv
# ----

SCRIPT="run_multi_worker_inference.sh"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

found="$(locate "$CONTEXTS_FILE")"
OUTPUT_FILE="$(beside "$OUTPUT_FILE" "$CONTEXTS_FILE" "$found")"
CONTEXTS_FILE="$found"
need_file CONTEXTS_FILE "context rows (JSONL)"
need_model "$@"
make_contexts="$SHOWN_PYTHON $SHOWN_HERE/batch_context_generator.py"
bundled=data/temp/contexts/bundled.jsonl
tell_missing "$make_contexts --queries_file $SHOWN_ASSETS/queries.json --corpus_path $SHOWN_ASSETS/corpus --index_path data/temp/index --output_file $bundled && CONTEXTS_FILE=$bundled OUTPUT_FILE=data/temp/inference/bundled.jsonl MODEL_PATH=tiny MAX_NEW_TOKENS=16 bash $SHOWN_HERE/$SCRIPT --ignore_eos" \
    "Contexts are made from questions and a corpus by:" \
    "  $make_contexts --queries_file queries.json --corpus_path corpora --output_file $(printf '%q' "$CONTEXTS_FILE")"

flags=(--contexts_file "$CONTEXTS_FILE" --output_file "$OUTPUT_FILE" --inference_type "$INFERENCE_TYPE" --workers "$NUM_WORKERS")
for name in MODEL_PATH TOTAL_GPUS GPUS_PER_WORKER MAX_SAMPLES_PER_WORKER MAX_NEW_TOKENS TEMPERATURE TOP_P; do
    if [[ -n "${!name}" ]]; then flags+=("--$(tr '[:upper:]' '[:lower:]' <<<"$name")" "${!name}"); fi
done

exec "$PYTHON" "$HERE/multi_worker_inference.py" "${flags[@]}" "$@"
