"""Schemas as readers want them: names without seams, integers with their width, fields with comments."""

import ast
import inspect
import re
import textwrap
import tokenize
from collections.abc import Iterator
from io import StringIO
from typing import Any

from pydantic import BaseModel

PREFIX = "#/components/schemas/"
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties")
_SINGLE = ("items", "additionalProperties", "not")
_NOT_PROSE = re.compile(r"noqa|type:")


def tidied(document: dict[str, Any]) -> dict[str, Any]:
    """Powertools' document with clients' names in it, and with what Python's types alone do not say."""
    components: dict[str, Any] = document["components"]["schemas"]
    for name, schema in components.items():
        _describe(name, schema)
        _tidy(schema)
    for path in document["paths"].values():
        for method, operation in path.items():
            _tidy_operation(operation)
            if method == "patch":
                _forget_defaults(operation, components)
    names = {name: _plain(name) for name in components}
    if len({*names.values()}) < len(names):
        raise ValueError("two models get one name: give one of the classes another")
    document["components"]["schemas"] = {names[name]: schema for name, schema in components.items()}
    renamed: dict[str, Any] = _renamed(document, names)
    return renamed


def _tidy_operation(operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _of_parameter(_tidy(parameter["schema"]))
        parameter["schema"].pop("description", None)  # stands beside it
    for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
        for content in holder.get("content", {}).values():
            _tidy(content.get("schema", {}))


def _forget_defaults(operation: dict[str, Any], components: dict[str, Any]) -> None:
    """What a PATCH does not name stays as it is; the model's defaults only say that it may be left out."""
    body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    for schema in components[body.removeprefix(PREFIX)]["properties"].values():
        schema.pop("default", None)


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """Changes it in place, and what it holds."""
    schema.pop("title", None)
    if schema.get("type") == "integer":
        schema.setdefault("format", "int64")
        schema |= {name: int(schema[name]) for name in _BOUNDS if name in schema}
    parts = [part for name in _LISTS for part in schema.get(name, ())]
    parts += [schema[name] for name in _SINGLE if isinstance(schema.get(name), dict)]
    parts += [part for name in _NAMED for part in schema.get(name, {}).values()]
    for part in parts:
        _tidy(part)
    return schema


def _of_parameter(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is there or not; what is optional in Python is never null in a URL."""
    kinds = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    alone: dict[str, Any] = kinds[0]
    return {name: value for name, value in schema.items() if name != "anyOf"} | alone


def _plain(name: str) -> str:
    """Page_Entry_ becomes EntryPage, Template-Input TemplateInput, people__User PeopleUser."""
    name = re.sub(r"^Page_(\w+)_$", r"\1Page", name).replace("-", "")
    *modules, last = name.removeprefix("backplane__").split("__")
    return "".join(part.title().replace("_", "") for part in modules) + last


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(reference := changed.get("$ref"), str) and reference.startswith(PREFIX):
        changed["$ref"] = PREFIX + names[reference.removeprefix(PREFIX)]
    return changed


# ---- what stands beside a field in the source ----


def _describe(name: str, schema: dict[str, Any]) -> None:
    model = _model(name, schema)
    for field, comment in _comments(model).items() if model else ():
        if field in schema["properties"]:
            schema["properties"][field].setdefault("description", comment)


def _model(name: str, schema: dict[str, Any]) -> type[BaseModel] | None:
    """The class that a component was made from: by its name, and by its fields where several have that."""
    last = re.sub(r"-(In|Out)put$", "", name.rpartition("__")[2])
    fields = {*schema.get("properties", ())}
    alike = {model for model in _models(BaseModel) if model.__name__ == last}
    found = [model for model in alike if {*model.model_fields, *model.model_computed_fields} == fields]
    return found[0] if len(found) == 1 else None


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in model.__subclasses__():
        yield child
        yield from _models(child)


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """The comment at the end of each field's line, its bases' too."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel and "[" not in kind.__name__:
            found |= _own_comments(textwrap.dedent(inspect.getsource(kind)))
    return found


def _own_comments(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    (definition,) = ast.parse(source).body
    fields = [node for node in ast.walk(definition) if isinstance(node, ast.AnnAssign)]
    return {
        field.target.id: comments[line].lstrip("# ").strip()
        for field in fields
        for line in range(field.lineno, (field.end_lineno or field.lineno) + 1)
        if isinstance(field.target, ast.Name) and line in comments and not _NOT_PROSE.search(comments[line])
    }
