"""The page at ``/docs``: the OpenAPI schema as plain HTML, without scripts and without other hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from ladle.nulls import UNSET

Schema = Mapping[str, Any]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
code{font:14px ui-monospace,monospace;background:#f2f2f2;padding:.1em .3em;border-radius:3px}
section{border-top:1px solid #ccc;padding:.5rem 0}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #eee}
summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}code{background:#2a2a2a}
a{color:#8ab4f8}td,th{border-color:#333}section{border-color:#444}}
"""


# Titles of groups, and what their paths begin with.
_GROUPS: dict[str, tuple[str, ...]] = {
    "Answers": ("/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/generate", "/v1/score"),
    "What is served": ("/v1/models", "/v1/families", "/v1/coefficients"),
    "Tokens": ("/v1/tokenize", "/v1/detokenize", "/tokenize", "/detokenize"),
    "Administration": ("/v1/admin",),
    "Health": ("/health", "/ready", "/metrics"),
}
_REST = "Other"


def render(openapi: Schema) -> str:
    """The page for an OpenAPI document."""
    info = openapi["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
        '<p>The same as a machine reads it: <a href="openapi.json">openapi.json</a></p>',
    ]
    groups = _groups(openapi)
    parts.append('<nav aria-label="Contents">')
    for title, operations in groups.items():
        links = "".join(
            f'<li><a href="#{_anchor(method, path)}"><code>{method.upper()} {escape(path)}</code></a> '
            f"{escape(operation.get('summary', ''))}</li>"
            for path, method, operation in operations
        )
        parts.append(f"<h2>{title}</h2><ul>{links}</ul>")
    parts.append('<p><a href="#types">Types</a></p></nav>')
    for title, operations in groups.items():
        parts.append(f"<h2>{title}</h2>")
        for path, method, operation in operations:
            parts.extend(_operation(openapi, path, method, operation))
    parts.append('<h2 id="types">Types</h2>')
    for name, schema in sorted(openapi.get("components", {}).get("schemas", {}).items()):
        parts.append(
            # The id is inside: a link to it opens the details around it.
            f"<details><summary><code>{escape(name)}</code></summary>"
            f'<div id="{escape(name)}">{_text(schema)}{_fields(schema)}</div></details>'
        )
    parts.append("</body></html>")
    return "".join(parts)


def _groups(openapi: Schema) -> dict[str, list[tuple[str, str, Schema]]]:
    """(path, method, operation) by the title of their group, in the order of ``_GROUPS``; the rest comes last."""
    groups: dict[str, list[tuple[str, str, Schema]]] = {title: [] for title in (*_GROUPS, _REST)}
    for path, methods in openapi["paths"].items():
        title = next((title for title, starts in _GROUPS.items() if path.startswith(starts)), _REST)
        groups[title] += [(path, method, operation) for method, operation in methods.items()]
    return {title: operations for title, operations in groups.items() if operations}


def _anchor(method: str, path: str) -> str:
    return method + re.sub(r"[^a-z0-9]+", "-", path.lower()).rstrip("-")


def _operation(openapi: Schema, path: str, method: str, operation: Schema) -> Iterator[str]:
    yield f'<section id="{_anchor(method, path)}"><h3><code>{method.upper()} {escape(path)}</code></h3>'
    yield f"<p><b>{escape(operation.get('summary', ''))}.</b></p>{_text(operation)}"
    if "requestBody" in operation:
        schema = _content(operation["requestBody"])
        yield f"<details><summary>Body: {_type(schema)}</summary>{_fields(_resolve(openapi, schema))}</details>"
    yield "<details><summary>Answers</summary><table>"
    for status, response in operation.get("responses", {}).items():
        kind = _type(_content(response)) if response.get("content") else ""
        yield f"<tr><td>{escape(status)}</td><td>{kind}</td><td>{escape(response['description'])}</td></tr>"
    yield "</table></details></section>"


def _content(holder: Schema) -> Schema:
    return next(iter(holder["content"].values())).get("schema", {})


def _resolve(openapi: Schema, schema: Schema) -> Schema:
    name = schema.get("$ref", "").rpartition("/")[2]
    resolved: Schema = openapi["components"]["schemas"][name] if name else schema
    return resolved


def _text(schema: Schema) -> str:
    return f"<p>{escape(schema['description'])}</p>" if schema.get("description") else ""


def _fields(schema: Schema) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' *' if name in required else ''}</td><td>{_type(field)}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>field (* required)</th><th>type</th><th></th></tr>{''.join(rows)}</table>" if rows else ""


def _type(schema: Schema) -> str:
    """A schema in a few words, with links to named types."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "allOf"):
        if key in schema:
            return " | ".join(dict.fromkeys(_type(option) for option in schema[key]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    others = schema.get("additionalProperties")
    if kind == "object" and isinstance(others, Mapping) and others != UNSET:
        return f"object of {_type(others)}"
    return escape(str(kind)) + _range(schema)


def _range(schema: Schema) -> str:
    marks = {"minimum": "&ge;", "exclusiveMinimum": "&gt;", "maximum": "&le;", "exclusiveMaximum": "&lt;"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in marks.items() if key in schema]
    return f" ({', '.join(limits)})" if limits else ""
