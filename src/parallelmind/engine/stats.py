"""What the engine has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EngineStats:
    """Counters since the engine was made."""

    prompt_tokens: int = 0
    """Tokens of mains and prompts run through the model."""
    cached_main_tokens: int = 0
    """Tokens of mains that were in the prefix cache instead."""
    generated_tokens: int = 0
    forwards: int = 0
