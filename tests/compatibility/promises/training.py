"""Training, and the conversion of fine-tuning data."""

from __future__ import annotations

from tests.compatibility.contract import Promise, section

section(
    "train",
    "Training on parallel records: `python trainer/train_hf_parallel_lora.py`",
    Promise("python trainer/train_hf_parallel_lora.py", "single process; the same as `parallelmind train`"),
    Promise("torchrun --nproc_per_node N trainer/train_hf_parallel_lora.py …", "N processes, one run, files once"),
    Promise("--base_model", "hub name or local path", "required"),
    Promise("--tokenizer_path", "tokenizer", "base_model"),
    Promise("--lora_rank", "rank of the adapter", "8"),
    Promise("--lora_name", "stem of the files written", "hf_parallel_lora"),
    Promise("--load_lora", "continue from these weights", "none"),
    Promise("--patch_rope", "2D RoPE on", "on"),
    Promise("--no_patch_rope", "2D RoPE off"),
    Promise("--rope_2d_ratio", "share of frequency pairs that encode the branch", "0.5"),
    Promise("--stride", "branch position = branch id × stride", "128"),
    Promise("--branch_stride", "another spelling of `--stride`", "128"),
    Promise("--data_path", "training data, JSONL", "none"),
    Promise("--hf_dataset", "instead: a Hugging Face dataset", "none"),
    Promise("--hf_subset", "its subset", "none"),
    Promise("--use_streaming", "read the data while training", "off"),
    Promise("--max_seq_len", "tokens of one branch at most", "512"),
    Promise("--branches_per_sample", "fixed mode: branches in a row", "8"),
    Promise("--max_branches_per_sample", "dynamic mode: branches in a row at most; 0 is fixed mode", "0"),
    Promise("--min_branches_per_sample", "dynamic mode: branches in a row at least", "1"),
    Promise("--epochs", "passes over the data", "1"),
    Promise("--batch_size", "branches in a batch", "16"),
    Promise("--batch_by_samples", "`--batch_size` counts rows", "off"),
    Promise("--learning_rate", "peak of the learning rate", "1e-4"),
    Promise("--accumulation_steps", "batches to one step", "1"),
    Promise("--grad_clip", "largest norm of the gradient", "1.0"),
    Promise("--dtype", "float32, float16 (GPU only) or bfloat16: mixed precision", "bfloat16"),
    Promise("--out_dir", "folder for all output", "out"),
    Promise("--log_interval", "steps between log entries", "50"),
    Promise("--save_interval", "steps between saved adapters", "500"),
    Promise("--use_wandb", "report to Weights & Biases", "off"),
    Promise("--ddp", "train in all processes of torchrun, which is done without it as well", "off"),
    Promise("LoRA on the linear layers, the rest frozen", "the adapter moves and nothing else does"),
    Promise(
        "ParallelPretrainDataset, ParallelPretrainCollator",
        "give input ids, pos2d, the columnar mask, and as labels the next token of the same branch",
    ),
    Promise("out/lora/{lora_name}_step{N}.pth", "adapter weights alone, every `--save_interval` steps"),
    Promise("out/lora/{lora_name}_final.pth", "adapter weights alone, at the end"),
    Promise(
        "a run of other settings",
        "stays as it is: the next one under its name is called `{lora_name}_2`, `_3`, …; equal settings continue it",
    ),
    Promise("the same adapter in PEFT format", "a folder beside each `.pth`"),
    Promise("<module path>.lora.A.weight", "in a `.pth`: [rank, in]"),
    Promise("<module path>.lora.B.weight", "in a `.pth`: [out, rank]"),
    Promise(
        "W + B·A",
        "a `.pth` of any origin is applied with no further scaling, on whichever Linear layers it names",
    ),
)

section(
    "train_hf_lora",
    "Training on conversations: `python trainer/train_hf_lora.py`",
    Promise("python trainer/train_hf_lora.py", "the flags above; the same as `parallelmind train --task lora`"),
    Promise("--lora_name", "stem of the files written", "{model_type}_parallel_lora, such as qwen2_parallel_lora"),
    Promise("{lora_name}_{model_tag}.pth", "the newest adapter, in mid-run too: `medical_lora_hf.pth`"),
    Promise("{lora_name}_{model_tag}_…", "names of the files, with model tag hf: `medical_lora_hf_final.pth`"),
    Promise("conversations", "loss on the assistant's turns"),
    Promise("several conversations in a row", "packed as its branches"),
    Promise("records", "parallel records as above"),
)

section(
    "train_pretrain",
    "Training from scratch: `python trainer/train_pretrain.py`",
    Promise("python trainer/train_pretrain.py", "the same as `parallelmind train --task pretrain`"),
    Promise(
        "a small model from scratch, on parallel data, without LoRA",
        "all weights are trained, and main is supervised too",
    ),
)

section(
    "convert",
    "Fine-tuning data into records: `python scripts/convert_sft_to_pretrain.py`",
    Promise(
        "python scripts/convert_sft_to_pretrain.py --input dataset/sft_data.jsonl"
        " --output dataset/sft_data_parallel.jsonl",
        "writes records; the same as `parallelmind convert`",
    ),
    Promise("--input", "fine-tuning data", "required"),
    Promise("--output", "records, JSONL", "required"),
    Promise("--branches_per_sample", "rows that share a record, so that it trains packed; 1: one record a row", "8"),
    Promise('{"conversations": [{"role", "content"}]}', "conversations"),
    Promise('{"conversations": [{"from", "value"}]}', "ShareGPT"),
    Promise('{"instruction", "input", "output"}', "Alpaca"),
    Promise('{"messages": [{"role", "content"}]}', "OpenAI"),
)
