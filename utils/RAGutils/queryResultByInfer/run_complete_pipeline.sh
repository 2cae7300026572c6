#!/usr/bin/env bash
# Queries to contexts to answers, in one command.
#   QUERIES_FILE=queries.json CORPUS_PATH=corpus OUTPUT_DIR=out MODEL_PATH=Qwen/Qwen2.5-0.5B-Instruct NUM_WORKERS=4 bash run_complete_pipeline.sh
# Further flags of `parallelmind contexts` go into CONTEXT_FLAGS; those of `parallelmind answer` may follow the command.
set -euo pipefail

QUERIES_FILE="${QUERIES_FILE:?set QUERIES_FILE to the queries (JSON or JSONL)}"
CORPUS_PATH="${CORPUS_PATH:?set CORPUS_PATH to the corpus folder}"
OUTPUT_DIR="${OUTPUT_DIR:-out}"
NUM_WORKERS="${NUM_WORKERS:-1}"
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../../../scripts/find_python.sh"
: "${MODEL_PATH:?set MODEL_PATH to a folder, a hub name, or the model name of the server}"

mkdir -p "$OUTPUT_DIR"
# shellcheck disable=SC2086  # CONTEXT_FLAGS holds several flags
"$PYTHON" "$HERE/batch_context_generator.py" --queries_file "$QUERIES_FILE" --corpus_path "$CORPUS_PATH" \
    --output_file "$OUTPUT_DIR/contexts.jsonl" --workers "$NUM_WORKERS" ${CONTEXT_FLAGS:-}
CONTEXTS_FILE="$OUTPUT_DIR/contexts.jsonl" OUTPUT_FILE="$OUTPUT_DIR/answers.jsonl" \
    exec bash "$HERE/run_multi_worker_inference.sh" "$@"
