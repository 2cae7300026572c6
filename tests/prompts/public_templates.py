"""Chat templates of public models, typed anew: what they write of conversations is theirs, the long words about how to
call tools are cut. With each a tokenizer of bytes that has the model's special tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class PublicTemplate:
    """A chat template and the special tokens that it writes."""

    source: str
    eos: str
    bos: str | None = None
    specials: tuple[str, ...] = ()


_ALTERNATE = "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"

_CHATML_TURN = "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
_CHATML_REPLY = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
CHATML = "{%- for m in messages %}" + _CHATML_TURN + "{%- endfor %}" + _CHATML_REPLY

_QWEN_TOOLS = (
    "{{- '\n\n# Tools\n\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}"
)
_QWEN_RESULT = (
    "{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
)
QWEN25 = (
    "{%- set persona = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}"
    "{%- if messages[0].role == 'system' %}{%- set persona = messages[0].content %}{%- endif %}"
    "{{- '<|im_start|>system\n' + persona }}"
    "{%- if tools %}" + _QWEN_TOOLS + "{%- else %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) or (m.role == 'assistant' and not m.tool_calls)"
    " %}" + _CHATML_TURN + "{%- elif m.role == 'assistant' %}{{- '<|im_start|>' + m.role }}"
    "{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
    "{%- for call in m.tool_calls %}{%- if call.function is defined %}{%- set call = call.function %}{%- endif %}"
    '{{- \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}{{- call.arguments | tojson }}'
    "{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}" + _QWEN_RESULT + "{%- endif %}{%- endfor %}" + _CHATML_REPLY
)
QWEN3 = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}" + _QWEN_TOOLS + ""
    "{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(searching=true, last_query=messages | length - 1) %}"
    "{%- for m in messages[::-1] %}{%- set index = (messages | length - 1) - loop.index0 %}"
    "{%- if ns.searching and m.role == 'user' and not (m.content.startswith('<tool_response>')"
    " and m.content.endswith('</tool_response>')) %}"
    "{%- set ns.searching = false %}{%- set ns.last_query = index %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set content = m.content %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}" + _CHATML_TURN + ""
    "{%- elif m.role == 'assistant' %}{%- set thought = '' %}"
    "{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}"
    "{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last_query and (loop.last or thought) %}"
    "{{- '<|im_start|>' + m.role + '\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + content }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}"
    "{%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}"
    "{%- if call.function %}{%- set call = call.function %}{%- endif %}"
    '{{- \'<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}"
    "{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}" + _QWEN_RESULT + "{%- endif %}{%- endfor %}" + _CHATML_REPLY + ""
    "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
)
YI15 = (
    "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}{%- for m in messages %}"
    "{%- if m.role != 'system' %}" + _CHATML_TURN + "{%- endif %}{%- endfor %}" + _CHATML_REPLY
)
INTERNLM2 = "{{- bos_token }}" + CHATML
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}" + _ALTERNATE + "{% endif %}"
    "{% set content = m.content %}{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA3_HEAD = "{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}"
LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}{%- set role = m.role %}" + _LLAMA3_HEAD + ""
    "{{- m.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{%- set role = 'assistant' %}" + _LLAMA3_HEAD + "{%- endif %}"
)
LLAMA31 = (
    "{{- bos_token }}{%- set system = '' %}{%- set turns = messages %}{%- if messages[0].role == 'system' %}"
    "{%- set system = messages[0].content | trim %}{%- set turns = messages[1:] %}{%- endif %}"
    "{%- set role = 'system' %}" + _LLAMA3_HEAD + "{%- if tools %}{{- 'Environment: ipython\n' }}{%- endif %}"
    "{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}"
    "{%- if tools %}{%- set role = 'user' %}" + _LLAMA3_HEAD + "{%- for tool in tools %}"
    "{{- tool | tojson(indent=4) + '\n\n' }}{%- endfor %}{{- turns[0].content | trim + '<|eot_id|>' }}"
    "{%- set turns = turns[1:] %}{%- endif %}"
    "{%- for m in turns %}{%- if m.tool_calls %}"
    "{%- if m.tool_calls | length != 1 %}{{ raise_exception('only one tool call at a time') }}{%- endif %}"
    "{%- set call = m.tool_calls[0].function %}{%- set role = 'assistant' %}" + _LLAMA3_HEAD + ""
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson + '}<|eot_id|>' }}"
    "{%- elif m.role == 'tool' %}{%- set role = 'ipython' %}" + _LLAMA3_HEAD + ""
    "{{- m.content | tojson + '<|eot_id|>' }}"
    "{%- else %}{%- set role = m.role %}" + _LLAMA3_HEAD + "{{- m.content | trim + '<|eot_id|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{%- set role = 'assistant' %}" + _LLAMA3_HEAD + "{%- endif %}"
)
MISTRAL_V1 = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}" + _ALTERNATE + ""
    "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


def _mistral(space: str) -> str:
    """Version 3, and the tokenizer called tekken, which has no space around control tokens."""
    return (
        (
            "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
            "{%- set turns = messages[1:] %}"
            "{%- else %}{%- set turns = messages %}{%- endif %}"
            "{%- set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
            "{%- set ns = namespace(index=0) %}{%- for m in turns %}"
            "{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
            "{%- if (m.role == 'user') != (ns.index % 2 == 0) %}" + _ALTERNATE + "{%- endif %}"
            "{%- set ns.index = ns.index + 1 %}{%- endif %}{%- endfor %}{{- bos_token }}"
            "{%- for m in turns %}{%- if m.role == 'user' %}"
            "{%- if tools and m == asked[-1] %}{{- '[AVAILABLE_TOOLS]S' }}{{- tools | tojson + '[/AVAILABLE_TOOLS]' }}"
            "{%- endif %}{%- if loop.last and system is defined %}"
            "{{- '[INST]S' + system + '\n\n' + m.content + '[/INST]' }}"
            "{%- else %}{{- '[INST]S' + m.content + '[/INST]' }}{%- endif %}"
            "{%- elif m.tool_calls %}{{- '[TOOL_CALLS]S[' }}{%- for call in m.tool_calls %}"
            "{%- if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be 9 long!') }}{%- endif %}"
            "{%- set out = call.function | tojson %}{{- out[:-1] + ', \"id\": \"' + call.id + '\"}' }}"
            "{{- ', ' if not loop.last else ']' + eos_token }}{%- endfor %}"
            "{%- elif m.role == 'assistant' %}{{- 'S' + m.content + eos_token }}"
            "{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]S{\"content\": ' + m.content + ', \"call_id\": \"' }}"
            "{{- m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
            "{%- else %}{{ raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
        )
        .replace("]S", "]" + space)
        .replace("'S'", f"'{space}'")
    )


_GEMMA_TURNS = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}" + _ALTERNATE + "{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set prefix = '' %}{% for m in messages %}" + _GEMMA_TURNS
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set prefix = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set prefix = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}" + _GEMMA_TURNS
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
DEEPSEEK_V2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
    "{% elif m.role == 'system' %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{% if m.content %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
_MISTRAL = tuple(f"[{end}{name}]" for name in ("INST", "TOOL_RESULTS", "AVAILABLE_TOOLS") for end in ("", "/"))
PUBLIC = {
    "chatml": PublicTemplate(CHATML, "<|im_end|>", specials=_IM),
    "qwen2.5": PublicTemplate(QWEN25, "<|im_end|>", specials=("<|endoftext|>", *_IM)),
    "qwen3": PublicTemplate(QWEN3, "<|im_end|>", specials=("<|endoftext|>", *_IM)),
    "yi-1.5": PublicTemplate(YI15, "<|im_end|>", "<|startoftext|>", specials=_IM),
    "internlm2": PublicTemplate(INTERNLM2, "</s>", "<s>", specials=_IM),
    "llama-2": PublicTemplate(LLAMA2, "</s>", "<s>"),
    "llama-3": PublicTemplate(LLAMA3, "<|end_of_text|>", "<|begin_of_text|>", specials=_HEADERS),
    "llama-3.1": PublicTemplate(LLAMA31, "<|eot_id|>", "<|begin_of_text|>", specials=_HEADERS),
    "mistral-v1": PublicTemplate(MISTRAL_V1, "</s>", "<s>"),
    "mistral-v3": PublicTemplate(_mistral(" "), "</s>", "<s>", specials=(*_MISTRAL, "[TOOL_CALLS]")),
    "mistral-tekken": PublicTemplate(_mistral(""), "</s>", "<s>", specials=(*_MISTRAL, "[TOOL_CALLS]")),
    "gemma-2": PublicTemplate(GEMMA2, "<eos>", "<bos>", specials=("<start_of_turn>", "<end_of_turn>")),
    "gemma-3": PublicTemplate(GEMMA3, "<eos>", "<bos>", specials=("<start_of_turn>", "<end_of_turn>")),
    "phi-3": PublicTemplate(
        PHI3, "<|endoftext|>", "<s>", specials=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    ),
    "phi-4": PublicTemplate(PHI4, "<|im_end|>", "<|endoftext|>", specials=(*_IM, "<|im_sep|>")),
    "zephyr": PublicTemplate(ZEPHYR, "</s>", "<s>"),
    "deepseek-v2": PublicTemplate(DEEPSEEK_V2, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "deepseek-r1": PublicTemplate(
        DEEPSEEK_R1, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", specials=("<｜User｜>", "<｜Assistant｜>")
    ),
    "glm-4": PublicTemplate(
        GLM4, "<|endoftext|>", specials=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
    ),
}
"""By the names of their models."""


def public_tokenizer(name: str) -> Any:
    """A tokenizer of bytes with a model's special tokens and chat template; None: of a base model, without template."""
    model = PUBLIC.get(name, PublicTemplate("", "<|endoftext|>"))
    specials = dict.fromkeys([*model.specials, model.eos, *([model.bos] if model.bos else [])])
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials]
    backend = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=model.eos,
        bos_token=model.bos,
        additional_special_tokens=[token for token in model.specials if token not in (model.eos, model.bos)],
        chat_template=model.source or None,
    )
