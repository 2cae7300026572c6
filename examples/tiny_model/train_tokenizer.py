"""Train the byte-level BPE tokenizer of the tiny model on the words and wordings of its stories."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from examples.tiny_model.data import HEADINGS, LANGUAGES, stories
from examples.tiny_model.kinds import KINDS
from examples.tiny_model.words import WORDS

EOS, PAD = "<|endoftext|>", "<|pad|>"


def training_texts(seed: int, repeats: int = 40) -> Iterator[str]:
    """English as sentences; Chinese as the pieces between name and value, so that merges keep to words."""
    rng = Random(seed)
    for language, pools in WORDS.items():
        for pool, words in pools.items():
            for word in words * repeats:
                yield " " + word if language == "en" else word
                if (language, pool) == ("en", "person"):
                    yield word
        for kind in KINDS[language]:
            for wording in (kind.told + kind.asked) * repeats:
                if language == "en":
                    name, value = (rng.choice(pools[pool]) for pool in (kind.subject, kind.value))
                    text = wording.format(n=name, v=value)
                    yield from (text, " " + text)
                else:
                    yield from filter(None, re.split(r"\{[nv]\}", wording))
        yield from HEADINGS[language] * repeats


def train(vocab_size: int, seed: int) -> Qwen2Tokenizer:
    """A tokenizer of the class AutoTokenizer takes for this architecture; its vocabulary has all bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = Qwen2Tokenizer().backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(seed), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=2048,
    )


def main() -> None:
    """Train, save, and say how long stories are in tokens."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = train(args.vocab_size, args.seed)
    tokenizer.save_pretrained(args.out_dir)
    for language in LANGUAGES:
        lengths = [len(tokenizer(record["main"])["input_ids"]) for record in stories(1, 300, 8, language)]
        print(f"{language}: {sum(lengths) / len(lengths):.1f} tokens on average, at most {max(lengths)}")


if __name__ == "__main__":
    main()
