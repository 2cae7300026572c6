"""Train the byte-level BPE tokenizer of the tiny model on the words and wordings of its stories."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from data import HEADINGS, stories
from kinds import KINDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from words import WORDS

EOS, PAD = "<|end|>", "<|pad|>"


def training_texts(seed: int, repeats: int = 40) -> Iterator[str]:
    """English as sentences; Chinese as the pieces between name and value, so that merges keep to words."""
    rng = Random(seed)
    for language, pools in WORDS.items():
        for pool, words in pools.items():
            for word in words:
                if pool == "time":
                    continue
                for _ in range(repeats):
                    yield " " + word if language == "en" else word
                    if language == "en" and pool == "person":
                        yield word
        for kind in KINDS[language]:
            for wording in kind.told + kind.asked:
                for _ in range(repeats):
                    if language == "en":
                        name, value = (rng.choice(pools[pool]) for pool in (kind.subject, kind.value))
                        text = wording.format(n=name, v=value)
                        yield from (text, " " + text)
                    else:
                        yield from filter(None, re.split(r"\{[nv]\}", wording))
        for heading in HEADINGS[language]:
            yield from [heading] * repeats


def train(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Any Unicode text round-trips, since all 256 bytes are in the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def save(tokenizer: PreTrainedTokenizerFast, out_dir: Path) -> None:
    """Write tokenizer.json and a tokenizer_config.json that every version of transformers reads."""
    tokenizer.save_pretrained(out_dir)
    path = out_dir / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Train, save, and say how long stories are in tokens."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = train(args.vocab_size, args.seed)
    save(tokenizer, args.out_dir)
    for language in ("en", "zh", "mixed"):
        lengths = [len(tokenizer(record["main"])["input_ids"]) for record in stories(1, 300, 8, language)]
        print(f"{language}: {sum(lengths) / len(lengths):.1f} tokens on average, at most {max(lengths)}")


if __name__ == "__main__":
    main()
