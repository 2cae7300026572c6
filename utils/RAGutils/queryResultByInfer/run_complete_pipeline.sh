#!/usr/bin/env bash
# Queries to contexts to answers, in one command.
#
#   bash run_complete_pipeline.sh                                         # with what stands below
#   QUERIES_FILE=queries.json CORPUS_PATH=corpora MODEL_PATH=Qwen/Qwen2.5-0.5B-Instruct NUM_WORKERS=4 bash run_complete_pipeline.sh
#
# Further flags of `parallelmind answer` may follow. Interrupted or killed, the same command goes on where it was.
set -euo pipefail

# ---- Edit these, or set them in the environment, which wins. ----
QUERIES_FILE="${QUERIES_FILE:-queries.json}" # JSON or JSONL
CORPUS_PATH="${CORPUS_PATH:-corpora}"        # folder that `parallelmind corpus build` fills
OUTPUT_DIR="${OUTPUT_DIR:-}"                 # contexts.jsonl and answers.jsonl are put there; empty: the two files below
CONTEXTS_FILE="${CONTEXTS_FILE:-${OUTPUT_DIR:+$OUTPUT_DIR/contexts.jsonl}}"
CONTEXTS_FILE="${CONTEXTS_FILE:-data/temp/contexts/batch_contexts.jsonl}"
OUTPUT_FILE="${OUTPUT_FILE:-${OUTPUT_DIR:+$OUTPUT_DIR/answers.jsonl}}"
OUTPUT_FILE="${OUTPUT_FILE:-data/temp/inference/results.jsonl}"
CONTEXT_FLAGS="${CONTEXT_FLAGS:-}"           # further flags of `parallelmind contexts`, such as --max_tokens 2000
NUM_WORKERS="${NUM_WORKERS:-1}"
MODEL_PATH="${MODEL_PATH:-}"                 # folder, hub name, or the model's name at the server
INFERENCE_TYPE="${INFERENCE_TYPE:-local}"    # local, huggingface, togetherai or openai
TOTAL_GPUS="${TOTAL_GPUS:-}"                 # what these and the next mean, run_multi_worker_inference.sh says
GPUS_PER_WORKER="${GPUS_PER_WORKER:-}"
MAX_SAMPLES_PER_WORKER="${MAX_SAMPLES_PER_WORKER:-}"
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-512}"
TEMPERATURE="${TEMPERATURE:-0.1}"
TOP_P="${TOP_P:-}"
PYTHON="${PYTHON:-}"                         # empty: python, python3, or that of the checkout's .venv
# ----

SCRIPT="run_complete_pipeline.sh"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

found="$(locate "$QUERIES_FILE")"
CONTEXTS_FILE="$(beside "$CONTEXTS_FILE" "$QUERIES_FILE" "$found")"
OUTPUT_FILE="$(beside "$OUTPUT_FILE" "$QUERIES_FILE" "$found")"
QUERIES_FILE="$found"
CORPUS_PATH="$(locate "$CORPUS_PATH")"
need_file QUERIES_FILE "the questions (JSON or JSONL)"
need_file CORPUS_PATH "the folder of corpora"
need_model "$@"
tell_missing "QUERIES_FILE=$SHOWN_ASSETS/queries.json CORPUS_PATH=$SHOWN_ASSETS/corpus CONTEXT_FLAGS='--index_path data/temp/index' OUTPUT_DIR=data/temp/bundled MODEL_PATH=tiny MAX_NEW_TOKENS=16 bash $SHOWN_HERE/$SCRIPT --ignore_eos" \
    "Corpora are built by:" \
    "  $SHOWN_PYTHON -m parallelmind corpus build numpy==1.26.4 --corpus_path $CORPUS_PATH"

flags=(--queries_file "$QUERIES_FILE" --corpus_path "$CORPUS_PATH" --output_file "$CONTEXTS_FILE" --workers "$NUM_WORKERS")
if [[ -n "$MODEL_PATH" && ("$INFERENCE_TYPE" == local || "$INFERENCE_TYPE" == huggingface) && " $* " != *" --backend"* ]]; then
    flags+=(--tokenizer "$MODEL_PATH") # contexts are measured in tokens of the model that answers
fi
# It prints where the contexts are: under another name, if other contexts stand in CONTEXTS_FILE.
# shellcheck disable=SC2086  # CONTEXT_FLAGS holds several flags
CONTEXTS_FILE="$("$PYTHON" "$HERE/batch_context_generator.py" "${flags[@]}" $CONTEXT_FLAGS | tail -n 1)"

export CONTEXTS_FILE OUTPUT_FILE MODEL_PATH INFERENCE_TYPE NUM_WORKERS TOTAL_GPUS GPUS_PER_WORKER \
    MAX_SAMPLES_PER_WORKER MAX_NEW_TOKENS TEMPERATURE TOP_P PYTHON
exec bash "$HERE/run_multi_worker_inference.sh" "$@"
