"""Keep keys out of everything that is written: errors, logs, answers."""

from __future__ import annotations

import base64
import json
import urllib.parse
from typing import Any

_MASK = "[key removed]"


class Redactor:
    """Replaces secrets in texts, as they are and as servers echo them (in JSON, in URLs, in base64)."""

    def __init__(self, *secrets: str) -> None:
        forms: set[str] = set()
        for secret in filter(None, secrets):
            forms |= {
                secret,
                json.dumps(secret)[1:-1],
                urllib.parse.quote(secret, safe=""),
                base64.b64encode(secret.encode()).decode(),
            }
        self._forms = sorted(forms, key=len, reverse=True)

    def text(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, _MASK)
        return text

    def value(self, value: Any) -> Any:
        """The same for every text in a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(item) for name, item in value.items()}
        return value

    def __repr__(self) -> str:
        return f"Redactor({len(self._forms)} forms)"
