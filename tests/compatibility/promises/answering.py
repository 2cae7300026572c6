"""Corpora, contexts and answers."""

from __future__ import annotations

from tests.compatibility.contract import Promise, section

section(
    "answer",
    "Answering over contexts: `python utils/RAGutils/queryResultByInfer/multi_worker_inference.py`",
    Promise("python utils/RAGutils/queryResultByInfer/multi_worker_inference.py", "the same as `parallelmind answer`"),
    Promise(
        "torchrun --nproc_per_node=4 utils/RAGutils/queryResultByInfer/multi_worker_inference.py",
        "each rank is a worker; one output",
    ),
    Promise("--contexts_file", "context rows", "required"),
    Promise("--output_file", "answer rows", "required"),
    Promise("--model_path", "folder, hub name, or the model's name at the server"),
    Promise("--inference_type", "local, huggingface or togetherai; also openai", "local"),
    Promise("--max_new_tokens", "tokens of an answer at most", "512"),
    Promise("--temperature", "sampling", "0.2"),
    Promise("--top_p", "sampling", "0.95"),
    Promise("--max_samples_per_worker", "the first rows only, as many for each worker", "all"),
    Promise("--verbose", "more log lines", "off"),
    Promise(
        '{"id", "original_item_id", "query_index", "dedup_key", "query", "target_api", "dependencies", '
        '"retrieval_method", "context", "context_length", "retrieval_time", "success"}',
        "a context row (input)",
    ),
    Promise(
        '{…, "answer", "inference_time", "total_time", "worker_rank", "success"}',
        "an answer row (output): the context row less `context`; total is retrieval + inference",
    ),
    Promise('"success": false in a context row', "a row with its error, and no model call"),
    Promise(
        'a failed answer: "success": false, "error"',
        "is tried again on the next run if that can help; an error text is never stored as an answer",
    ),
    Promise("ids", "strings or integers, 0 included"),
    Promise("Worker N INFERENCE STATISTICS", "a block for each worker at the end, then the total over all workers"),
    Promise("Results saved to: output_rank0.jsonl", "the answers of each of several workers in a file of its own, too"),
    Promise("live progress", "records done and failed, rate and time left, of all workers"),
    Promise("streaming", "memory does not grow with the file"),
)

section(
    "backends",
    "What answers",
    Promise("--inference_type local", "a local model on the engine"),
    Promise("--inference_type huggingface", "a Hugging Face Hub model on the engine"),
    Promise("--inference_type togetherai", "Together AI, with the key in TOGETHER_API_KEY"),
    Promise("--inference_type openai --base_url", "any OpenAI-compatible URL"),
    Promise(
        "from multi_worker_inference import QueryBasedInference",
        "a class of your own: overrides `generate_answer(query, context, retrieval_method)`",
    ),
)

section(
    "workers",
    "Many workers: `run_multi_worker_inference.sh`, `run_complete_pipeline.sh`",
    Promise("run_multi_worker_inference.sh", "NUM_WORKERS workers on one context file"),
    Promise(
        "bash utils/RAGutils/queryResultByInfer/run_multi_worker_inference.sh",
        "runs on the variables at its top, or says what is missing and a command that works",
    ),
    Promise("run_complete_pipeline.sh", "queries to contexts to answers"),
    Promise("NUM_WORKERS", "worker processes", "1"),
    Promise("TOTAL_GPUS", "the first so many of the GPUs that are there", "all"),
    Promise("GPUS_PER_WORKER", "GPUs of each worker, shared if there are too few", "total_gpus // num_workers"),
    Promise("MAX_SAMPLES_PER_WORKER", "the first rows only, as many for each worker", "all"),
    Promise("test_multi_worker_inference.py --skip-inference", "checks the slicing, starts no worker"),
    Promise("slicing", "every record exactly once; sizes differ by at most one, remainders included"),
    Promise("a slow worker", "does not hold the others up"),
    Promise(
        "gpus_per_worker = total_gpus // num_workers",
        "worker 0 of 4 on 8 GPUs owns [0, 1], and so on, by CUDA_VISIBLE_DEVICES",
    ),
    Promise("CUDA_VISIBLE_DEVICES", "a set that is restricted already is divided"),
    Promise("fewer GPUs than workers", "shared mode, said in the log"),
    Promise("no GPU", "the CPU, said in the log where GPUs were asked for"),
)

section(
    "contexts",
    "Contexts: `python utils/RAGutils/queryResultByInfer/batch_context_generator.py`",
    Promise(
        "python utils/RAGutils/queryResultByInfer/batch_context_generator.py", "the same as `parallelmind contexts`"
    ),
    Promise("--queries_file", "questions", "required"),
    Promise("--corpus_path", "folder of corpora", "required"),
    Promise("--output_file", "context rows", "required"),
    Promise("--corpus_type", "docstring or srccodes", "docstring"),
    Promise("--max_documents", "documents of a context found by search, at most", "10"),
    Promise("--max_tokens", "tokens of a context, at most", "4000"),
    Promise("--enable_str_match", "renamed modules and names that are much alike", "off"),
    Promise("--fixed_docs_per_query", "documents of a context found by search", "1"),
    Promise("--jump_exact_match", "leave the exact stage out", "off"),
    Promise("--start_index", "leave out the first queries", "0"),
    Promise("--max_samples", "at most so many queries", "all"),
    Promise("--embedding_source", "local or togetherai: ranking by meaning", "local"),
    Promise("--verbose", "list the failed queries in the log", "off"),
    Promise(
        '{"<id>": {"queries": [{"query", "target_api"}], "original_data": {"target_dependency": {…}}}}',
        "queries as one JSON object",
    ),
    Promise('{"id", "query", "target_api", "dependencies"}', "queries as flat JSONL rows"),
    Promise('"id": "<original id>_<index>"', "id of an expanded row"),
    Promise('"dedup_key"', "stable, of query, API and dependencies; duplicates are dropped and counted"),
    Promise("exact_api_match", "equal to a path or alias, never a mere substring"),
    Promise("rag_string_match", "renamed modules (scipy.fftpack → scipy.fft), then name similarity"),
    Promise("rag_fallback", "ranked search"),
    Promise("the versions in dependencies", "are the only ones a context is taken from"),
)

section(
    "corpus",
    "Corpora on disk",
    Promise("{corpus}/{import name}/{version}.jsonl", "the documentation of one version"),
    Promise('{"path", "aliases", "doc"}', "a row of it"),
    Promise('"type", "signature", "members"', "optional fields of a row"),
)
