"""How a server that speaks OpenAI's protocol is asked: shared by the command that answers and the backend that asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt

from parallelmind.settings.setting import Setting

_GROUP = "servers (togetherai, openai)"

BaseUrl = Annotated[
    str | None,
    Setting("address of a server that speaks OpenAI's protocol, such as http://127.0.0.1:8000/v1", _GROUP),
]
ApiKeyEnv = Annotated[
    str | None,
    Setting(
        "environment variable that holds the key", _GROUP, default="the service's own, such as OPENAI_API_KEY",
        identity=False,
    ),
]  # fmt: skip
Concurrency = Annotated[int, Ge(1), Setting("requests of each worker at once", _GROUP, identity=False)]
Timeout = Annotated[float, Gt(0), Setting("seconds for one request", _GROUP, identity=False)]
Rpm = Annotated[
    float | None,
    Gt(0),
    Setting("at most this many requests a minute, of all workers together", _GROUP, identity=False),
]
Tpm = Annotated[
    float | None,
    Gt(0),
    Setting("at most this many tokens a minute, of all workers together", _GROUP, identity=False),
]
MaxAttempts = Annotated[int, Ge(1), Setting("at most this many attempts at one question", _GROUP, identity=False)]
MaxRetrySeconds = Annotated[
    float,
    Ge(0),
    Setting("seconds after the first attempt in which others may follow", _GROUP, identity=False),
]
ExtraBody = Annotated[
    Mapping[str, Any], Setting("JSON object with further fields for each request; they win over all others", _GROUP)
]
