"""Document 001: inference with a LoRA adapter, in a terminal, from Python and behind HTTP."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from typing import Any

from tests.conformance.blocks import Block, Document, by_design
from tests.conformance.desk import FEW_TOKENS, Desk
from tests.server.serving import running, tiny_engine

SCRIPT = "python scripts/inference_hf_lora.py"
ADAPTER = "out/lora/qwen2_parallel_lora_hf_final.pth"
ON_SMALL = f"{SCRIPT} --base_model Qwen/Qwen2-0.5B-Instruct"
CHAT = f"{ON_SMALL} --lora_path {ADAPTER} --lora_rank 8 --rope_2d_ratio 0.5 --mode chat"
GENERATE = f'{ON_SMALL} --lora_path {ADAPTER} --lora_rank 8 --mode generate --prompt "请写一首关于春天的诗："'
TRAIN = (
    "torchrun --nproc_per_node 8 trainer/train_hf_lora.py --base_model Qwen/Qwen2-0.5B-Instruct "
    "--data_path dataset/medical_data.jsonl --lora_name medical_lora --lora_rank 8"
)
MEDICAL = f"{ON_SMALL} --lora_path out/lora/medical_lora_hf_final.pth --lora_rank 8 --mode chat --temperature 0.3"
WRITER = (
    f"{SCRIPT} --base_model Qwen/Qwen2.5-1.5B-Instruct --lora_path out/lora/writer_lora_hf_final.pth --lora_rank 16 "
    '--mode generate --prompt "请写一篇关于人工智能发展的文章" --max_new_tokens 1024 --temperature 0.8'
)
CODE = (
    f"{SCRIPT} --base_model Qwen/Qwen2.5-7B-Instruct --lora_path out/lora/code_lora_hf_final.pth --lora_rank 32 "
    '--mode generate --prompt "写一个 Python 函数计算斐波那契数列" --temperature 0.2'
)
TALK = "你好，请介绍一下你自己\nquit\n"
LOAD = 'load_model_with_lora(base_model="Qwen/Qwen2-0.5B-Instruct", lora_path="{adapter}", lora_rank=8{more})'
NO_POS2D = "extra_pos2d is not set. Call set_rope_pos2d first."


def chat(desk: Desk, line: str, *more: str) -> str:
    done = desk.command(line, *more, *FEW_TOKENS, stdin=TALK)
    assert "User: " in done.out
    assert "Assistant: " in done.out
    reply = done.out.partition("Assistant: ")[2].partition("User: ")[0]
    assert reply.strip(), "an empty line is no answer"
    return "User: … Assistant: …, then 再见！" if "再见！" in done.out else "no farewell"


def generated(desk: Desk, line: str, *more: str) -> str:
    done = desk.command(line, *more, *FEW_TOKENS)
    assert done.out.strip() or "nothing" in done.err
    return "a completion, or a line that there is none"


def from_python(desk: Desk) -> str:
    call = LOAD.format(adapter=ADAPTER, more=", rope_2d_ratio=0.5, patch_rope=True")
    names = desk.python(
        "from scripts.inference_hf_lora import load_model_with_lora, generate_text\n"
        f"model, tokenizer, patch_rope = {call}\n"
        'response = generate_text(model, tokenizer, "你好", max_new_tokens=4)\n'
    )
    assert isinstance(names["response"], str)
    return f"three values, patch_rope {names['patch_rope']}, a text"


BY_HAND = """
import types
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from model.model_lora import apply_lora, load_lora
from parallel.columnar import patch_model_with_interleaved_2d_rope, set_rope_pos2d
from scripts.inference_hf_lora import auto_pair_indices

name = "Qwen/Qwen2-0.5B-Instruct"
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, torch_dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5))
calls = []

def prepare(self, input_ids, **kwargs):
    inputs = self._orig_prepare_inputs_for_generation(input_ids, **kwargs)
    if inputs.get("position_ids") is None:
        inputs["position_ids"] = torch.arange(inputs["input_ids"].size(-1))[None]
    time = inputs["position_ids"]
    set_rope_pos2d(self, torch.stack((torch.zeros_like(time), time), dim=-1))
    calls.append(time.shape[-1])
    return inputs

model._orig_prepare_inputs_for_generation = model.prepare_inputs_for_generation
model.prepare_inputs_for_generation = types.MethodType(prepare, model)
apply_lora(model, rank=8)
load_lora(model, ADAPTER)
model.eval()
inputs = tokenizer("你好，请介绍一下你自己", return_tensors="pt")
with torch.no_grad():
    outputs = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=True, temperature=0.7, top_p=0.9)
response = tokenizer.decode(outputs[0], skip_special_tokens=True)
"""


def by_hand(desk: Desk) -> str:
    names = desk.python(BY_HAND.replace("ADAPTER", repr(ADAPTER)))
    assert names["response"].startswith("你好，请介绍一下你自己")
    assert len(names["calls"]) == 4
    return "pos2d set before each of 4 steps, prompt and answer"


def trained(desk: Desk) -> str:
    desk.command(TRAIN, *(() if desk.as_printed else ("--max_steps", "1")))
    assert desk.exists("out/lora/medical_lora_hf.pth")
    assert desk.exists("out/lora/medical_lora_hf_final.pth")
    return "out/lora/medical_lora_hf.pth and medical_lora_hf_final.pth"


def batch_script(desk: Desk) -> str:
    desk.write(
        "batch_inference.py",
        "from scripts.inference_hf_lora import load_model_with_lora, generate_text\n\n"
        f"model, tokenizer = {LOAD.format(adapter=ADAPTER, more='')}\n"
        'for prompt in ["请介绍一下你自己", "什么是人工智能？", "请写一首诗"]:\n'
        "    response = generate_text(model, tokenizer, prompt, max_new_tokens=4)\n"
        "    print(f\"{'=' * 80}\\nPrompt: {prompt}\\nResponse: {response}\")\n",
    )
    if desk.as_printed:
        out = desk.command("python batch_inference.py").out
    else:
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            desk.python((desk.folder / "batch_inference.py").read_text(encoding="utf-8"))
        out = printed.getvalue()
    return f"two values; {out.count('Response:')} answers"


def quantized(desk: Desk) -> str:
    names = desk.python(
        "import torch\nfrom transformers import BitsAndBytesConfig\n"
        "config = BitsAndBytesConfig(load_in_8bit=True, bnb_4bit_compute_dtype=torch.bfloat16)\n"
    )
    assert names["config"].load_in_8bit
    return "transformers' own configuration"


def over_gpus(desk: Desk) -> str:
    names = desk.python(
        "import torch\nfrom transformers import AutoModelForCausalLM\n"
        'name = "Qwen/Qwen2.5-7B-Instruct"\n'
        'model = AutoModelForCausalLM.from_pretrained(name, device_map="auto", torch_dtype=torch.bfloat16)\n'
    )
    return f"a model on {names['model'].device.type}"


def without_rotary(desk: Desk) -> str:
    from tests.families import char_tokenizer, tiny_model

    folder = desk.folder / "xxx"
    tiny_model("gpt2").save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    line = f"{SCRIPT} --base_model xxx --mode generate --prompt abc"
    refused = desk.command(line, "--patch_rope", code=1).err
    assert "--no_patch_rope" in refused
    assert "未找到 rotary_emb" in refused
    desk.command(line, "--no_patch_rope", *FEW_TOKENS)
    return "未找到 rotary_emb, which names --no_patch_rope; with it the model runs"


def wrong_rank(desk: Desk) -> str:
    refused = desk.command(f"{ON_SMALL} --lora_path {ADAPTER} --lora_rank 16 --mode generate --prompt a", code=1).err
    assert "size mismatch for" in refused
    assert "16" in refused
    return "size mismatch for …, with both ranks"


def inspected(desk: Desk) -> str:
    names = desk.python(
        "from scripts.inference_hf_lora import load_model_with_lora\n"
        f"model, _ = {LOAD.format(adapter=ADAPTER, more='')}\n"
        "found = {n: m.lora for n, m in model.named_modules() if hasattr(m, 'lora')}\n"
        "shapes = {(one.A.weight.shape[0], one.B.weight.shape[1]) for one in found.values()}\n"
    )
    assert names["shapes"] == {(8, 8)}
    return f"{len(names['found'])} layers with lora.A and lora.B of rank 8"


SERVICE = """
from fastapi import FastAPI
from pydantic import BaseModel
from scripts.inference_hf_lora import load_model_with_lora

app = FastAPI()
model, tokenizer = LOAD


class Asked(BaseModel):
    prompt: str
    max_new_tokens: int = 512
    temperature: float = 0.7


@app.post("/generate")
def generate(asked: Asked):
    inputs = tokenizer(asked.prompt, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=asked.max_new_tokens, temperature=asked.temperature)
    return {"response": tokenizer.decode(outputs[0], skip_special_tokens=True)}
"""


def posted(app: Any) -> str:
    """What a running application answers to the document's request."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/generate",
            json.dumps({"prompt": "你好", "max_new_tokens": 4}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["response"])
    finally:
        server.should_exit = True
        thread.join(60)


def own_service(desk: Desk) -> str:
    call = LOAD.format(adapter="out/lora/xxx_final.pth", more="")
    desk.write("serve_api.py", SERVICE.replace("LOAD", call))
    source = (desk.folder / "serve_api.py").read_text(encoding="utf-8")
    sys.modules.pop("serve_api", None)
    app = desk.python(source.replace("from __future__ import annotations\n", ""))["app"]
    assert posted(app).startswith("你好")
    return "prompt and answer"


def our_service(desk: Desk) -> str:
    with running(tiny_engine) as server:
        answer = server.post("/generate", {"prompt": "你好", "max_new_tokens": 4}).json["response"]
    assert answer.startswith("你好")
    return "prompt and answer"


DOCUMENT = Document(
    "001",
    "Inference with a LoRA adapter",
    (
        by_design(
            11,
            NO_POS2D,
            "the error of a model with 2D RoPE whose pos2d was not set",
            "It does not arise by itself: ordinary positions mean branch 0, so a patched model generates without any "
            "further call. These words come only where set_rope_pos2d was called for a forward of another length.",
        ),
        Block(30, CHAT, "a chat that ends with quit", lambda desk: chat(desk, CHAT)),
        Block(50, GENERATE, "a completion", lambda desk: generated(desk, GENERATE)),
        Block(62, "load_model_with_lora(…) and generate_text in Python", "three values and a text", from_python),
        Block(
            79,
            "the model patched, prepared and loaded by hand",
            "generate calls set_rope_pos2d before each step",
            by_hand,
        ),
        Block(184, TRAIN, "an adapter as <lora_name>_<model_tag>[_final].pth", trained),
        Block(193, MEDICAL, "a chat with the trained adapter", lambda desk: chat(desk, MEDICAL)),
        Block(203, WRITER, "an adapter of rank 16", lambda desk: generated(desk, WRITER)),
        Block(216, CODE, "an adapter of rank 32", lambda desk: generated(desk, CODE)),
        Block(230, "batch_inference.py", "model, tokenizer = load_model_with_lora(…); three answers", batch_script),
        by_design(
            266,
            "pip install flash-attn",
            "faster attention",
            "Not needed: torch's own kernels are used on every device; transformers' choice of attention is a flag.",
        ),
        Block(272, "BitsAndBytesConfig(load_in_8bit=True, …)", "a configuration for from_pretrained", quantized),
        Block(289, 'from_pretrained(…, device_map="auto")', "the model on the devices there are", over_gpus),
        Block(
            317, "--base_model xxx --lora_path xxx --no_patch_rope", "a model without rotary_emb runs", without_rotary
        ),
        Block(
            331,
            "--temperature 0.3; --top_p 0.8; --repetition_penalty 1.2",
            "flags of any command above",
            lambda desk: generated(
                desk, GENERATE, "--temperature", "0.3", "--top_p", "0.8", "--repetition_penalty", "1.2"
            ),
        ),
        Block(
            350,
            "--device cpu --dtype float32",
            "flags of any command above",
            lambda desk: generated(desk, GENERATE, "--device", "cpu", "--dtype", "float32"),
        ),
        Block(358, "size mismatch for …", "the error of a wrong --lora_rank", wrong_rank),
        Block(367, "for name, module in model.named_modules(): module.lora", "the shapes of A and B", inspected),
        Block(381, "serve_api.py under uvicorn, and curl", "prompt and answer", own_service),
        Block(419, "curl … /generate on parallelmind serve", "the same", our_service),
    ),
)
