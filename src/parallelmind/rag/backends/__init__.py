"""What answers questions over contexts; see `base`."""

from parallelmind.rag.backends.adapter import UserBackend
from parallelmind.rag.backends.base import (
    Answer,
    AnswerBackend,
    InferenceSettings,
    Message,
    Outcome,
    Prompt,
    QueryBasedInference,
)
from parallelmind.rag.backends.endpoint import Endpoint, find_endpoint
from parallelmind.rag.backends.loading import load_backend_class
from parallelmind.rag.backends.openai_compatible import HttpSettings, OpenAICompatibleBackend
from parallelmind.rag.backends.retry import RetryPolicy

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
