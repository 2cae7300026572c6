"""The page that describes the API, made from its OpenAPI document; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} API</title>
<link rel="stylesheet" href="/static/api.css">
</head>
<body>
<main>
<h1>{title} API {version}</h1>
<p>{description} For programs: <a href="/openapi.json">openapi.json</a>. The page: <a href="/">here</a>.</p>
{body}
</main>
</body>
</html>
"""


def api_page(document: Mapping[str, Any]) -> str:
    """HTML for an OpenAPI document."""
    schemas = document["components"]["schemas"]
    operations = [
        _operation(method, path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    info = document["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info.get("description", "")),
        body="\n".join(operations),
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    parts = [
        "<section>",
        f"<h2><b>{method.upper()}</b> <code>{escape(path)}</code></h2>",
        *(f"<p>{_inline(paragraph)}</p>" for paragraph in operation.get("description", "").split("\n\n")),
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts += ["<h3>Body</h3>", _fields(_resolved(body, schemas), schemas)]
    for status, response in operation["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema") or {}
        resolved = _resolved(schema, schemas)
        if status == "200" and resolved.get("properties"):
            parts += ["<h3>Answer</h3>", _fields(resolved, schemas)]
    refusals = [(s, r["description"]) for s, r in operation["responses"].items() if s not in ("200", "503")]
    if body is not None:
        listed = "".join(f"<li><b>{escape(status)}</b> {escape(text)}</li>" for status, text in refusals)
        parts.append(f"<details><summary>Refusals</summary><ul>{listed}</ul></details>")
    return "\n".join([*parts, "</section>"])


def _fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'*' if name in schema.get('required', ()) else ''}</td>"
        f"<td>{escape(_kind(field, schemas))}</td><td>{_inline(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    nested = "".join(
        f"<details><summary>{escape(name)}</summary>{_fields(schemas[name], schemas)}</details>"
        for name in dict.fromkeys(_references(schema.get("properties", {})))
        if schemas[name].get("properties")
    )
    return f"<table><tr><th>field</th><th>kind</th><th>meaning</th></tr>{rows}</table>{nested}"


def _kind(field: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        kinds = [_kind(option, schemas) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field or "const" in field:
        return ", ".join(str(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), schemas)}"
    return str(field.get("type", "any"))


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _inline(text: str) -> str:
    """`code` as code."""
    parts = escape(" ".join(text.split())).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
