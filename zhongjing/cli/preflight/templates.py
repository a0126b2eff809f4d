"""Renders a document's chat template, as far as that needs no tokenizer."""

from __future__ import annotations

from typing import Any

from zhongjing.codes.document import INVALID_TEMPLATE
from zhongjing.errors import ConfigError

_WHERE = "spec.base.chatTemplate"
_QUESTION, _ANSWER = "头痛 aB <b> & 'c'?\n1. end", '多喝水 <i> & "d".'
# Names that transformers gives to a template (utils/chat_template_utils.py, render_jinja_template).
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def check_template(template: str) -> None:
    """Checks a chat template on one question with its answer.

    What only the tokenizer can tell (whether a special token ends a turn) is left to the job. So is all of it
    where jinja2 is not installed: a client of a cluster may do without.

    Raises:
        ConfigError: it does not parse, fails, rewrites contents, or its prompt is not how it begins a
            dialogue with its answer.
    """
    try:
        from jinja2 import TemplateError, TemplateSyntaxError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        return

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # The environment is that of transformers (utils/chat_template_utils.py, _compile_jinja_template).
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
    asked = {"role": "user", "content": _QUESTION}
    answered = [asked, {"role": "assistant", "content": _ANSWER}]
    try:
        compiled = environment.from_string(template)
        whole = _rendered(compiled, answered, generation=False)
        prompt = _rendered(compiled, [asked], generation=True)
    except TemplateSyntaxError as error:
        if error.message and "generation" in error.message:
            return  # a tag of transformers' own
        raise _refusal(f"does not parse: line {error.lineno}: {error.message}") from None
    except Exception as error:
        # Templates are programs: whatever they raise on a plain dialogue, they would raise in the job.
        raise _refusal(f"fails on a question with its answer: {type(error).__name__}: {error}") from None
    # As a job asks: contents stand in what is written as they are, but for space around them.
    if _QUESTION not in prompt:
        raise _refusal("cuts or rewrites questions", "write the content of a turn as it is")
    if not whole.startswith(prompt):
        raise _refusal(
            "writes a prompt that is not how it begins a dialogue with its answer: training could not show "
            "the model what it will see",
            "write what add_generation_prompt adds in front of every answer too",
        )


def _rendered(compiled: Any, messages: list[dict[str, str]], *, generation: bool) -> str:
    text: str = compiled.render(
        messages=messages, add_generation_prompt=generation, tools=None, documents=None, **_TOKENS
    )
    return text


def _refusal(message: str, remedy: str | None = None) -> ConfigError:
    return ConfigError(f"the template {message}", code=INVALID_TEMPLATE, where=_WHERE, remedy=remedy)
