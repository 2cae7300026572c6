"""Sampling settings for the usual situations."""

from __future__ import annotations

from typing import TypedDict


class Preset(TypedDict):
    """Fields of `SamplingParams`."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


PRESETS: dict[str, Preset] = {
    "factual": {"temperature": 0.2, "top_p": 0.75, "top_k": 25, "repetition_penalty": 1.1},
    "creative": {"temperature": 0.8, "top_p": 0.95, "top_k": 80, "repetition_penalty": 1.0},
    "code": {"temperature": 0.15, "top_p": 0.8, "top_k": 30, "repetition_penalty": 1.1},
    "smalltalk": {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1},
    "translation": {"temperature": 0.1, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0},
}
