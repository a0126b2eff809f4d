"""The policy: what each class of identifier becomes. A YAML file that a data-protection officer can read.

The one that is shipped is ``policy.yaml`` beside this module; a user may give their own, of the same classes.
"""

from __future__ import annotations

from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from zhongjing.codes.document import (
    DOCUMENT_NOT_FOUND,
    INVALID_VALUE,
    INVALID_YAML,
    MISSING_FIELD,
    UNKNOWN_FIELD,
)
from zhongjing.errors import ConfigError

REMEDY = "begin from the policy that is shipped: zhongjing/construct/deidentify/policy.yaml"


class Identifier(StrEnum):
    """The classes of identifiers."""

    PATIENT_NAME = "PATIENT_NAME"
    DOCTOR_NAME = "DOCTOR_NAME"
    FAMILY_NAME = "FAMILY_NAME"
    PERSON_NAME = "PERSON_NAME"
    PHONE = "PHONE"
    ID_CARD = "ID_CARD"
    BANK_CARD = "BANK_CARD"
    PASSPORT = "PASSPORT"
    RECORD_NUMBER = "RECORD_NUMBER"
    ADDRESS = "ADDRESS"
    HOSPITAL = "HOSPITAL"
    EMAIL = "EMAIL"
    ACCOUNT = "ACCOUNT"
    DATE = "DATE"
    BIRTH_DATE = "BIRTH_DATE"
    PLATE = "PLATE"
    URL = "URL"
    IP_ADDRESS = "IP_ADDRESS"


NAMES = frozenset(each for each in Identifier if each.endswith("_NAME"))
DATES = frozenset({Identifier.DATE, Identifier.BIRTH_DATE})


class Rule(BaseModel):
    """What is found and what it becomes. The words are for people; ``action`` and ``label`` decide."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    zh: str
    en: str
    rule: str
    rule_en: str
    action: Literal["placeholder", "surrogate", "relative", "keep"]
    label: str = Field(min_length=1, max_length=16, pattern=r"^[^\[\]\s\d]+$")


class Policy(BaseModel):
    """One rule for every class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    classes: dict[Identifier, Rule]

    @field_validator("classes")
    @classmethod
    def _whole(cls, classes: dict[Identifier, Rule]) -> dict[Identifier, Rule]:
        missing = [each.value for each in Identifier if each not in classes]
        if missing:
            raise ValueError(f"says nothing of {', '.join(missing)}: write action: keep for what shall stay")
        for name, rule in classes.items():
            if rule.action == "relative" and name not in DATES:
                raise ValueError(f"{name}: action relative is for DATE and BIRTH_DATE only")
        return classes

    @property
    def needs_salt(self) -> bool:
        """Whether a class is replaced by made-up values."""
        return any(rule.action == "surrogate" for rule in self.classes.values())


def load_policy(path: str | Path | None = None) -> Policy:
    """The policy of a file; without one, that which is shipped.

    Raises:
        ConfigError: the file is missing, is not YAML (line and column), or is no policy (line and field).
    """
    if path is None:
        text = resources.files(__package__).joinpath("policy.yaml").read_text(encoding="utf-8")
        return parse_policy(text, "policy.yaml")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the policy cannot be read", code=DOCUMENT_NOT_FOUND, where=str(path), remedy=REMEDY
        ) from error
    return parse_policy(text, str(path))


def parse_policy(text: str, origin: str) -> Policy:
    """Reads a policy. ``origin`` names it in messages. Raises ConfigError as :func:`load_policy` does."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        raise ConfigError(
            f"is not valid YAML: {error.problem}", code=INVALID_YAML, where=where, remedy=REMEDY
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError("is not valid YAML", code=INVALID_YAML, where=origin, remedy=REMEDY) from error
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path = tuple(part for part in problem["loc"] if part != "[key]")
        codes = {"missing": MISSING_FIELD, "extra_forbidden": UNKNOWN_FIELD}
        message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "should")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        dotted = ".".join(str(part) for part in path) or "the policy"
        where = f"{origin}, line {_line(node, path)}: {dotted}"
        code = codes.get(problem["type"], INVALID_VALUE)
        raise ConfigError(message, code=code, where=where, remedy=REMEDY) from error


def _line(node: Any, path: tuple[str | int, ...]) -> int:
    """Line of a field, from 1; of the nearest one above it where it is not written."""
    line = 1
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        if found is None:
            break
        line = int(found[0].start_mark.line) + 1
        node = found[1]
    return line
