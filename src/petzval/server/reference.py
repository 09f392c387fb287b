"""The description of the API: OpenAPI for programs, and a plain page of it for people.

The page is made here, without a script and without anything from elsewhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from petzval.server.schemas import ErrorAnswer

_ERRORS: Mapping[str, str] = {
    "400": "The request is wrong; the message says where.",
    "401": "No valid key.",
    "403": "A page of another site asked.",
    "404": "There is no such thing, or it is somebody else's.",
    "405": "Not with this method.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is of a type or encoding that is not accepted.",
    "421": "The Host header has another server's name.",
    "422": "It was understood, and cannot be done.",
    "429": "Too many requests; `Retry-After` says when to come back.",
    "503": "The server is stopping, or as many connections as may be are open.",
}
_STREAMS = ("/v1/jobs/{id}/events", "/v1/events")
_OPEN = frozenset({"/health", "/ready", "/v1/links/{id}"})


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
            separate_input_output_schemas=False,
        )
        for path, methods in document["paths"].items():
            for operation in methods.values():
                _complete(path, operation)
        parts = document["components"]
        for unused in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(unused, None)
        parts["schemas"]["ErrorAnswer"] = {
            **ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}"),
        }
        parts["schemas"] |= parts["schemas"]["ErrorAnswer"].pop("$defs", {})
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Say what every operation may also answer, and that it may want a key."""
    reference = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}
    for status, text in _ERRORS.items():
        operation["responses"][status] = {
            "description": text,
            "content": {"application/json": reference},
        }
    success = next(s for s in operation["responses"] if s.startswith("2"))
    answer = operation["responses"][success]
    if path in _STREAMS:
        answer["content"] = {"text/event-stream": {}}
    elif path == "/v1/images/generations":
        answer["content"]["text/event-stream"] = {}
    elif path == "/metrics":
        answer["content"] = {"text/plain": {"schema": {"type": "string"}}}
    elif path.endswith(("/file", "/thumbnail")) or path.startswith("/v1/links"):
        kinds = ("image/png", "image/jpeg", "image/webp")
        schema = {"schema": {"type": "string", "format": "binary"}}
        answer["content"] = dict.fromkeys(kinds, schema)
    if path not in _OPEN:
        operation["security"] = [{"key": []}, {}]


def page(document: Mapping[str, Any]) -> str:
    """The document for people."""
    info = document["info"]
    parts = [
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(info['title'])} API</title>",
        f"<h1>{html.escape(info['title'])} API {html.escape(info['version'])}</h1>",
        f"<p>{html.escape(info['summary'])}",
        'For programs: <a href="/openapi.json">openapi.json</a>.</p>',
        *_operations(document),
        "<h2>Errors</h2>",
        "<p>All have the shape <code>"
        '{"error": {"message", "type", "param", "code"}}</code>.</p><dl>',
        *(f"<dt>{s}</dt><dd>{html.escape(t)}</dd>" for s, t in _ERRORS.items()),
        "</dl></html>",
    ]
    return "\n".join(parts)


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
            yield f"<p>{html.escape(operation.get('description', ''))}</p>"
            parameters = operation.get("parameters", [])
            rows = [(p["name"], p["schema"], p.get("required", False)) for p in parameters]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body:
                rows += list(_fields(document, body["schema"]))
            if rows:
                yield "<ul>"
                for name, schema, required in rows:
                    needed = " (required)" if required else ""
                    kind = html.escape(_kind(document, schema))
                    yield f"<li><code>{html.escape(name)}</code>: {kind}{needed}</li>"
                yield "</ul>"


def _fields(
    document: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    resolved = _resolved(document, schema)
    required = resolved.get("required", ())
    for name, field in resolved.get("properties", {}).items():
        yield name, field, name in required
        inner = _resolved(document, field)
        for below in inner.get("properties", {}):
            yield f"{name}.{below}", inner["properties"][below], False


def _kind(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        options = cast("list[dict[str, Any]]", schema["anyOf"])
        return " or ".join(_kind(document, each) for each in options)
    if "enum" in schema:
        return ", ".join(str(each) for each in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema.get("type", "any"))
    limits = [
        f"{word} {schema[key]}"
        for key, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most"))
        if key in schema
    ]
    return f"{kind} {' '.join(limits)}".strip()


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[1]
        schema = document["components"]["schemas"][name]
    return schema
