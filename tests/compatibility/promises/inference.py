"""Batch and single inference, the Python interface, the service."""

from __future__ import annotations

from tests.compatibility.contract import Promise, section

section(
    "batch",
    "Batch parallel inference",
    Promise("python scripts/parallel_inference_hf_lora.py", "the same as `parallelmind batch`"),
    Promise(
        "torchrun --nproc_per_node N scripts/parallel_inference_hf_lora.py",
        "each rank takes its part; the results of all ranks end in one file",
    ),
    Promise("--base_model", "hub name or local path", "required"),
    Promise("--data_path", "input JSONL", "required"),
    Promise("--out_path", "output JSONL", "required"),
    Promise("--lora_path", "`.pth` file or PEFT adapter folder; without it the base model alone", "none"),
    Promise("--lora_rank", "must agree with the weights; a mismatch is an error that names both ranks", "8"),
    Promise("--patch_rope", "2D RoPE on", "on with an adapter"),
    Promise("--no_patch_rope", "2D RoPE off; with neither flag and no adapter it is off, and the log says why"),
    Promise("--rope_2d_ratio", "share of frequency pairs that encode the branch", "0.5"),
    Promise("--branches_per_sample", "fixed mode: branches in a row", "4"),
    Promise("--max_branches_per_sample", "given: dynamic mode, at most this many branches in a row", "none"),
    Promise("--min_branches_per_sample", "dynamic mode, at least this many", "1"),
    Promise("--batch_by_samples", "`batch_size` counts rows; off: it counts branches", "off"),
    Promise("--batch_size", "rows or branches that run at once", "16"),
    Promise("--max_total_tokens", "tokens in a row at most; 0: no limit", "0"),
    Promise("--branch_stride", "branch position = branch id × stride", "128"),
    Promise("--max_new_tokens", "tokens of an answer at most", "512"),
    Promise("--temperature", "0 is greedy", "0.7"),
    Promise("--top_p", "the likeliest tokens that reach this probability together", "0.9"),
    Promise("--device", "with no GPU present and no `--device` given: the CPU, and it says so", "cuda"),
    Promise("--dtype", "number format of the weights", "bfloat16"),
    Promise("--num_workers", "data loader workers", "1"),
    Promise("--max_samples", "first N records only", "none"),
    Promise("--batch-size", "every flag may be spelled with hyphens"),
    Promise('{"main", "branches"}', "an input row: a shared text, and the texts that run in parallel under it"),
    Promise('{"text"}', "an input row whose text is the main"),
    Promise('{"input", "output"}', "one output line per generated answer with at least these fields, in input order"),
    Promise(
        '{"input", "output": null, "error", "line"}',
        "the row of a record that is too long, empty or malformed: it never stops the job and never vanishes",
    ),
    Promise("rank=X", "each rank logs with its rank"),
    Promise(
        "loaded and finished",
        "the log states how many records were loaded (数据集加载完成) and how many generations finished "
        "(生成完成), and the two are reconciled: skipped records are listed with the reason",
    ),
)

section(
    "single",
    "Single inference",
    Promise("python scripts/inference_hf_lora.py --mode chat", "the same as `parallelmind chat`"),
    Promise("python scripts/inference_hf_lora.py --mode generate", "the same as `parallelmind generate`"),
    Promise("python parallel_generate.py", "branches of one prompt in parallel; the same as `parallelmind generate`"),
    Promise("--base_model", "hub name or local path", "required"),
    Promise("--lora_path", "`.pth` file or PEFT adapter folder", "none"),
    Promise("--lora_rank", "must agree with the weights", "8"),
    Promise("--rope_2d_ratio", "share of frequency pairs that encode the branch", "0.5"),
    Promise("--no_patch_rope", "2D RoPE off"),
    Promise("--device", "with no GPU present and no `--device` given: the CPU, and it says so", "cuda"),
    Promise("--dtype", "number format of the weights", "bfloat16"),
    Promise("--mode", "chat or generate", "chat"),
    Promise("--prompt", "the text that generate continues"),
    Promise("--max_new_tokens", "tokens of an answer at most", "512"),
    Promise("--temperature", "0 is greedy", "0.7"),
    Promise("--top_p", "the likeliest tokens that reach this probability together", "0.9"),
    Promise("--top_k", "this many of the likeliest tokens", "50"),
    Promise("--repetition_penalty", "above 1 discourages repetition", "1.1"),
    Promise("User: and Assistant:", "the prompt of the chat, and a streamed reply"),
    Promise("history", "the chat keeps it"),
    Promise("quit, exit, Ctrl-D", "end the chat, which says 再见！"),
    Promise("--load_in_8bit", "8-bit weights (bitsandbytes)", "off"),
    Promise("--load_in_4bit", "4-bit weights (bitsandbytes)", "off"),
    Promise('--device_map auto / device_map="auto"', "the model spread over several GPUs", "none"),
    Promise("attn_implementation", "the choice of Flash, SDPA or Flex attention for a model outside the engine"),
    Promise("a model with no rotary embedding", "gives an error that says so and names `--no_patch_rope`"),
)

section(
    "presets",
    "Sampling presets: temperature, top_p, top_k, repetition_penalty",
    Promise("--preset factual", "factual questions: 0.1-0.3, 0.7-0.8, 20-30, 1.1"),
    Promise("--preset creative", "creative writing: 0.7-0.9, 0.9-0.95, 50-100, 1.0"),
    Promise("--preset code", "code: 0.1-0.2, 0.8, 30, 1.1"),
    Promise("--preset smalltalk", "small talk: 0.6-0.8, 0.9, 50, 1.1"),
    Promise("--preset translation", "translation: 0.1, 0.8, 20, 1.0"),
)

section(
    "python",
    "Python",
    Promise("from scripts.inference_hf_lora import load_model_with_lora, generate_text", "import path"),
    Promise(
        "from scripts.inference_hf_lora import auto_pair_indices",
        "import path; also importable from trainer.train_hf_lora and trainer.train_hf_parallel_lora",
    ),
    Promise(
        "from scripts.inference_hf_lora import _prepare_pos2d, _set_prompt_pos2d, _inject_pos2d_hook",
        "import path; pos2d of a prompt, given to the next forward, and to every forward of generate",
    ),
    Promise("from model.model_lora import apply_lora, load_lora, save_lora", "import path"),
    Promise(
        "from parallel.columnar import patch_model_with_interleaved_2d_rope, set_rope_pos2d, "
        "build_columnar_causal_mask",
        "import path",
    ),
    Promise("from parallel.columnar import Interleaved2DRoPE", "the module that the patch installs"),
    Promise("model, tokenizer = load_model_with_lora(...)", "the first two of the three"),
    Promise("load_model_with_lora(dtype=torch.float32)", "torch's dtypes beside their names"),
    Promise(
        "size mismatch for", "a file of another rank than apply_lora's or --lora_rank's is an error with these words"
    ),
    Promise(
        "load_model_with_lora(base_model=..., lora_path=..., lora_rank=8, rope_2d_ratio=0.5, patch_rope=True)",
        "returns (model, tokenizer, patch_rope)",
    ),
    Promise('generate_text(model, tokenizer, "...")', "the continuation of a prompt"),
    Promise(
        "patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5)); "
        "apply_lora(model, rank=8); load_lora(model, path)",
        "the same as load_model_with_lora, step by step",
    ),
    Promise("save_lora(model, path)", "a file that load_lora takes"),
    Promise(
        "set_rope_pos2d(model, pos2d)",
        "pos2d: LongTensor [batch, seq, 2] = (branch position, time position)",
    ),
    Promise("build_columnar_causal_mask(...)", "who sees whom in a row"),
    Promise(
        'if hasattr(module, "lora"): module.lora.A.weight.shape, module.lora.B.weight.shape',
        "inspecting what was loaded: A is [rank, in], B is [out, rank]",
    ),
    Promise(
        "model.generate(...)",
        "works on a patched model with no further call: ordinary 1-D positions mean branch 0",
    ),
)

section(
    "service",
    "Service",
    Promise(
        "POST /generate", 'takes `{"prompt", "max_new_tokens", "temperature"}`, answers `{"response": prompt + answer}`'
    ),
    Promise("prompt", "field: the text to continue", "required"),
    Promise("max_new_tokens", "field: tokens of the answer at most", "512"),
    Promise("temperature", "field: 0 is greedy", "0.7"),
    Promise("return_full_text", "field: false gives the continuation alone", "true"),
    Promise("parallelmind serve", "starts it"),
    Promise("uvicorn", "starts it on an app object"),
    Promise("--port", "where it listens", "8000"),
)
