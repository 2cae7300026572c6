#!/usr/bin/env bash
# Answer questions over contexts with NUM_WORKERS workers, each with its share of the GPUs.
#   CONTEXTS_FILE=contexts.jsonl OUTPUT_FILE=answers.jsonl MODEL_PATH=Qwen/Qwen2.5-0.5B-Instruct NUM_WORKERS=4 bash run_multi_worker_inference.sh
# Further flags of `parallelmind answer` may follow. Interrupted or killed, the same command goes on where it was.
set -euo pipefail

NUM_WORKERS="${NUM_WORKERS:-1}"
TOTAL_GPUS="${TOTAL_GPUS:-}"
GPUS_PER_WORKER="${GPUS_PER_WORKER:-}"
MAX_SAMPLES_PER_WORKER="${MAX_SAMPLES_PER_WORKER:-}"
CONTEXTS_FILE="${CONTEXTS_FILE:?set CONTEXTS_FILE to the context rows (JSONL)}"
OUTPUT_FILE="${OUTPUT_FILE:?set OUTPUT_FILE to the file for the answers (JSONL)}"
MODEL_PATH="${MODEL_PATH:?set MODEL_PATH to a folder, a hub name, or the model name of the server}"
INFERENCE_TYPE="${INFERENCE_TYPE:-local}"
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../../../scripts/find_python.sh"

if [[ -n "$TOTAL_GPUS" ]]; then
    # The first TOTAL_GPUS of those this shell may use.
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        CUDA_VISIBLE_DEVICES="$(cut -d, -f "1-$((TOTAL_GPUS > 0 ? TOTAL_GPUS : 1))" <<<"$CUDA_VISIBLE_DEVICES")"
    else
        CUDA_VISIBLE_DEVICES="$(seq -s, 0 "$((TOTAL_GPUS - 1))")"
    fi
    if [[ "$TOTAL_GPUS" == 0 ]]; then CUDA_VISIBLE_DEVICES=""; fi
    export CUDA_VISIBLE_DEVICES
fi

flags=(--contexts_file "$CONTEXTS_FILE" --output_file "$OUTPUT_FILE" --model_path "$MODEL_PATH")
flags+=(--inference_type "$INFERENCE_TYPE" --workers "$NUM_WORKERS")
if [[ -n "$GPUS_PER_WORKER" ]]; then flags+=(--gpus_per_worker "$GPUS_PER_WORKER"); fi
if [[ -n "$MAX_SAMPLES_PER_WORKER" ]]; then flags+=(--max_samples_per_worker "$MAX_SAMPLES_PER_WORKER"); fi

exec "$PYTHON" "$HERE/multi_worker_inference.py" "${flags[@]}" "$@"
