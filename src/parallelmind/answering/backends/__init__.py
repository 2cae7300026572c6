"""What answers questions over contexts; see `base`."""

from parallelmind.answering.backends.adapter import UserBackend
from parallelmind.answering.backends.base import (
    Answer,
    AnswerBackend,
    InferenceSettings,
    Message,
    Outcome,
    Prompt,
    QueryBasedInference,
)
from parallelmind.answering.backends.loading import load_backend_class
from parallelmind.answering.backends.openai_compatible import HttpSettings, OpenAICompatibleBackend
from parallelmind.answering.backends.retry import RetryPolicy
from parallelmind.io.endpoint import Endpoint, find_endpoint

__all__ = [
    "Answer",
    "AnswerBackend",
    "Endpoint",
    "HttpSettings",
    "InferenceSettings",
    "Message",
    "OpenAICompatibleBackend",
    "Outcome",
    "Prompt",
    "QueryBasedInference",
    "RetryPolicy",
    "UserBackend",
    "find_endpoint",
    "load_backend_class",
]
