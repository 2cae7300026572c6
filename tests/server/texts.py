"""A text, questions about it, and what the bundled model answers."""

from __future__ import annotations

STORY = "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue. Tina counted 36 coins.\n"
QUESTIONS = ["How old is Dan?", "How much does the hat cost?", "What does Emma like?"]
ANSWERS = [" 26", " 91", " blue"]
LONG = {"max_tokens": 1900, "ignore_eos": True, "temperature": 0}
"""Runs until it is stopped."""
