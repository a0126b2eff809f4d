"""From what the user wrote to a complete document: load, override, fill in, validate.

Defaults are frozen when a pipeline is created: a later version of Zhongjing with other defaults re-runs
nothing. What the user wrote always wins; what they took back returns to the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zhongjing.codes.command import INVALID_OVERRIDE, UNKNOWN_RECIPE
from zhongjing.codes.document import DOCUMENT_NOT_FOUND, INVALID_YAML, NOT_A_PIPELINE, UNSET_VARIABLE
from zhongjing.config.defaults import expand
from zhongjing.config.pipeline import API_VERSION, KIND, TrainingPipeline
from zhongjing.config.validate import Place, validate
from zhongjing.errors import ConfigError

_Path = tuple[str | int, ...]


class UserDocument(dict[str, Any]):
    """What the user wrote, with the places it stands at for messages.

    ``origin`` is a file name or recipe; ``lines`` maps a field path to its line, from 1; ``overridden`` has
    the paths that came by ``--set``.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        origin: str,
        lines: Mapping[_Path, int],
        overridden: Iterable[_Path] = (),
    ) -> None:
        super().__init__(data)
        self.origin = origin
        self.lines = dict(lines)
        self.overridden = frozenset(overridden)

    def holding(self, data: Mapping[str, Any], overridden: Iterable[_Path] = ()) -> UserDocument:
        """The same places around other content."""
        return UserDocument(data, self.origin, self.lines, self.overridden.union(overridden))

    def place(self, path: _Path) -> str:
        """``my.yaml, line 7: spec.seed``. A field that is not written has the line of its parent."""
        dotted = _dotted(path)
        prefixes = [path[:length] for length in range(len(path), 0, -1)]
        if any(prefix in self.overridden for prefix in prefixes):
            return f"--set {dotted}"
        line = next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), None)
        below = next((each for each in self.overridden if each[: len(path)] == path), None)
        if below is not None and path not in self.lines:
            return f"--set {_dotted(below)}"  # the override made this part, the file has none
        if line is not None:
            return f"{self.origin}, line {line}: {dotted}"
        return f"{self.origin}, {dotted}" if self.origin else dotted


class Frozen(NamedTuple):
    """What a pipeline was created with: the user's sparse document, and the resolved one."""

    sparse: dict[str, Any]
    resolved: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of keeping the last silently."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # "<<": what stands in the mapping itself may well override it
        key = loader.construct_object(key_node, deep=deep)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is given twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


# YAML 1.1, which PyYAML reads, takes 1e-4 for text; YAML 1.2 and kubectl take it for a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
# YAML 1.1 takes 1:30 for ninety (sexagesimal); YAML 1.2 and kubectl take it for text.
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers[_first].insert(
        0, ("tag:yaml.org,2002:str", re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$"))
    )
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def load_document(path: str | Path) -> UserDocument:
    """Reads a YAML or JSON file.

    Raises:
        ConfigError: the file is missing, does not parse (line and column), or is no TrainingPipeline.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such file", code=DOCUMENT_NOT_FOUND, where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", code=DOCUMENT_NOT_FOUND, where=str(path)) from error
    return parse_document(text, origin=str(path))


def parse_document(text: str, origin: str) -> UserDocument:
    """Parses a document. Raises ConfigError as :func:`load_document` does."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        data: Any = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        raise ConfigError(f"is not valid YAML: {error.problem}", code=INVALID_YAML, where=where) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", code=INVALID_YAML, where=origin) from error
    if not isinstance(data, dict) or "spec" not in data:
        raise ConfigError("is not a TrainingPipeline document", code=NOT_A_PIPELINE, where=origin)
    data.setdefault("apiVersion", API_VERSION)
    data.setdefault("kind", KIND)
    if data["kind"] != KIND:
        raise ConfigError(f"is a {data['kind']}, not a {KIND}", code=NOT_A_PIPELINE, where=origin)
    lines: dict[_Path, int] = {}
    if node is not None:
        _collect_lines(node, (), lines)
    return UserDocument(data, origin, lines)


def _collect_lines(node: yaml.Node, path: _Path, lines: dict[_Path, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _collect_lines(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*path, index), lines)


def recipe_names() -> list[str]:
    """Names of the recipes that travel with the package."""
    folder = resources.files("jobs") / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def recipe(name: str) -> UserDocument:
    """A recipe by name. Raises ConfigError naming the known ones."""
    if name not in recipe_names():
        raise ConfigError(
            f"there is no recipe {name!r}",
            code=UNKNOWN_RECIPE,
            remedy=f"the recipes are: {', '.join(recipe_names())}",
        )
    return parse_document(recipe_text(name), origin=recipe_origin(name))


def recipe_text(name: str) -> str:
    """The text of a recipe that there is."""
    return (resources.files("jobs") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_origin(name: str) -> str:
    """The origin of a recipe's document."""
    return f"recipe {name}"


def resolve(
    user: Mapping[str, Any],
    overrides: Sequence[str] = (),
    frozen: Frozen | None = None,
    *,
    submitted: bool = False,
) -> TrainingPipeline:
    """The complete, validated document.

    Args:
        user: what the user wrote, usually a :class:`UserDocument`.
        overrides: ``path=value`` assignments (``spec.stages.sft.learningRate=1e-4``); values are YAML.
        frozen: what the pipeline was created with, when it exists already.
        submitted: whether it comes from elsewhere. ``${VARIABLES}`` are the submitter's: filled in here, they
            would be this process's, secrets among them.

    Raises:
        ConfigError: names every wrong field by its path, and the line where it stands.
    """
    sparse = with_stage_defaults(apply_overrides(user, overrides))
    expanded = _expand_environment(sparse, (), sparse.place, None if submitted else os.environ)
    document = validate(expanded, sparse.place)
    if frozen is None:
        return document
    before = expand(frozen.sparse)[0]
    merged = _merge_frozen(document.model_dump(mode="json"), expanded, before, frozen.resolved)
    return validate(merged, sparse.place)


def with_stage_defaults(user: UserDocument) -> UserDocument:
    """The document with ``spec.stages.defaults`` filled into the stages. Raises ConfigError."""
    data, origins = expand(user)
    lines, overridden = dict(user.lines), set(user.overridden)
    for place, source in origins.items():
        for path, line in user.lines.items():
            if path[: len(source)] == source:
                lines[(*place, *path[len(source) :])] = line
        if any(source[:length] in overridden for length in range(1, len(source) + 1)):
            overridden.add(place)
    return UserDocument(data, user.origin, lines, overridden)


def apply_overrides(user: Mapping[str, Any], overrides: Sequence[str]) -> UserDocument:
    """A copy of the user's document with ``path=value`` assignments made. Raises ConfigError."""
    data: dict[str, Any] = _copy(user)
    overridden: list[_Path] = []
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"--set takes path=value, not {override!r}", code=INVALID_OVERRIDE)
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(
                f"the value {text!r} is not valid YAML", code=INVALID_OVERRIDE, where=f"--set {path}"
            ) from error
        overridden.append(_assign(data, path.strip().split("."), value, override))
    written = user if isinstance(user, UserDocument) else UserDocument(data, "", {})
    return written.holding(data, overridden)


def _assign(data: dict[str, Any], parts: list[str], value: Any, override: str) -> _Path:
    """Makes one assignment; returns the path with numbers for elements of lists."""
    here: Any = data
    path: list[str | int] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            index = _list_index(here, part)
            if index is None:
                names = [item.get("name", item.get("source")) for item in here if isinstance(item, dict)]
                raise ConfigError(
                    f"there is no element {part!r} (there is: {', '.join(map(str, names)) or 'nothing'})",
                    code=INVALID_OVERRIDE,
                    where=f"--set {override}",
                )
            path.append(index)
            if last:
                here[index] = value
            else:
                here = here[index]
        elif isinstance(here, dict):
            path.append(part)
            if last:
                here[part] = value
            else:
                if here.get(part) is None:
                    here[part] = {}
                here = here[part]
        else:
            raise ConfigError(
                f"{'.'.join(parts[:depth])} is a value, it has no {part!r}",
                code=INVALID_OVERRIDE,
                where=f"--set {override}",
            )
    return tuple(path)


def _list_index(items: list[Any], part: str) -> int | None:
    if part.isdigit():
        return int(part) if int(part) < len(items) else None
    for index, item in enumerate(items):
        if isinstance(item, dict) and part in (item.get("name"), item.get("source")):
            return index
    return None


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Only where places are named: a chat template may well hold "${".
_EXPANDED = {"uri", "delta", "root", "from", "reward"}


def _expand_environment(value: Any, path: _Path, place: Place, environment: Mapping[str, str] | None) -> Any:
    if isinstance(value, dict):
        return {
            key: _expand_environment(each, (*path, key), place, environment) for key, each in value.items()
        }
    if isinstance(value, list):
        return [_expand_environment(each, (*path, at), place, environment) for at, each in enumerate(value)]
    if not isinstance(value, str) or not path or path[-1] not in _EXPANDED:
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if environment is not None and name in environment:
            return environment[name]
        message, remedy = "is not set", f"export {name}=... or write the place itself"
        if environment is None:
            message = "is only known where the document is submitted"
            remedy = "write the place itself, or submit the document: `zhongjing submit -f FILE`"
        raise ConfigError(
            f"the environment variable {name} {message}",
            code=UNSET_VARIABLE,
            where=place(path),
            remedy=remedy,
        )

    return _VARIABLE.sub(replace, value)


def _merge_frozen(current: Any, sparse: Any, old_sparse: Any, old_resolved: Any) -> Any:
    """Frozen defaults under what is written now; lists are the user's, whole."""
    if not isinstance(current, dict):
        return current
    merged: dict[str, Any] = {}
    for key, value in current.items():
        written = isinstance(sparse, dict) and key in sparse
        was_written = isinstance(old_sparse, dict) and key in old_sparse
        known = isinstance(old_resolved, dict) and key in old_resolved
        if isinstance(value, dict) and known and isinstance(old_resolved[key], dict):
            merged[key] = _merge_frozen(
                value,
                sparse.get(key) if written else None,
                old_sparse.get(key) if was_written else None,
                old_resolved[key],
            )
        elif written or was_written or not known:
            merged[key] = value
        else:
            merged[key] = old_resolved[key]
    return merged


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def to_yaml(document: TrainingPipeline) -> str:
    """The document as YAML, fields in their order, unset optional ones left out."""
    data = document.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
