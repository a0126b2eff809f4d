"""docs/troubleshooting.md: every code of the catalogue, after a page on how to read a message."""

from __future__ import annotations

from zhongjing.codes import GROUPS, Code, Group
from zhongjing.codes.code import BAD_INPUT, FAILED, INTERRUPTED, UNREACHABLE

TROUBLESHOOTING_FILE = "docs/troubleshooting.md"

_EXIT_CODES = {
    0: "what was asked for is done",
    FAILED: "a stage failed or waits for input, or something unexpected happened",
    BAD_INPUT: "bad input: the document, an option, a source, a model, this machine",
    UNREACHABLE: "Ray, the supervisor or the object store cannot be reached or refused",
    INTERRUPTED: "interrupted; the same command goes on",
}

_OPENING = """\
# Troubleshooting

Generated from `zhongjing/codes` by `make generated`; do not edit.

## How to read a message

```
error[UnknownField]: my.yaml, line 7: spec.stages.sft.learningRte: unknown key (did you mean 'learningRate'?)
  remedy: docs/configuration.md lists every field with its unit and default
```

The word in brackets is the code: it has a section below, with what usually brings it about and what to do.
Then come the place (file and line, field path, URI), what is wrong there, and the remedy. Codes keep their
names from release to release, so scripts may branch on them. In a run's status they are the reasons of failed
stages and of the pipeline's conditions.

A message of a failed stage names the stage, and how to see its log:

```
error[TooFewAnswers]: rm: s3://corpora/ranked.jsonl, record 3: one answer to compare
  remedy: give every question two ranked answers or more
  traceback: s3://zhongjing/local/my/rm/0123456789abcdef/logs/traceback-a1.txt
  log: zhongjing logs my --stage rm --local
```

### Exit codes

"""

_HELP = """
`submit --dry-run` ends with 1 where it says that a stage would stop or would be refused here; what
it prints is the same.

### For programs

With `-o json` there is exactly one object on stdout; what people read goes to stderr. The object of an error
has `error` (the class), `code`, `message`, `where`, `remedy`, `log` (the file with the traceback, or null)
and `exitCode`. The object of a run that failed is the run's own with `error`, `code`, `message`, `where`,
`remedy`, `traceback` (the URI of the stage's traceback, or null) and `exitCode` added. One without `error` is
a success.

### Tracebacks

Bad input (exit code 2) has no traceback: the message names the place and the remedy. The traceback of any
other failure is kept in a file that the line `traceback:` names: in `logs/` of the workdir if there is one,
else in `${XDG_STATE_HOME:-~/.local/state}/zhongjing/logs/`, else in the temporary folder. The newest 20 files
stay. Only their owner may read them.

### Looking further

- `zhongjing doctor --local` checks this machine, `zhongjing doctor -n NAMESPACE` a release on a cluster,
  `zhongjing doctor --storage URI` an object store. Each line says fine, or the remedy.
- `zhongjing status NAME --local` shows what runs, `zhongjing logs NAME --stage STAGE --local` a stage's log.
- `zhongjing report NAME --local` writes the facts for an issue to one file: versions, states, codes, numbers
  and where in zhongjing it failed. Names, paths, keys, messages, records and lines of logs never get in.

After nearly every error the same command goes on: what is done is skipped, and a stage resumes from its last
checkpoint.

## Codes

"""


def troubleshooting_page() -> str:
    """The page: one section a group, one heading a code."""
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in _EXIT_CODES.items())
    table = f"| code | meaning |\n| --- | --- |\n{rows}"
    contents = "".join(f"- {group.title}: {_links(group)}\n" for group in GROUPS)
    return "".join([_OPENING, table, _HELP, contents, *(_section(group) for group in GROUPS)])


def _links(group: Group) -> str:
    # GitHub and mkdocs both make the anchor of a heading of one word by lower case.
    return ", ".join(f"[{code.name}](#{code.name.lower()})" for code in group.codes)


def _section(group: Group) -> str:
    entries = "".join(_entry(code) for code in group.codes)
    return f"\n## {group.title}\n\nExit code {group.exit_code}.\n{entries}"


def _entry(code: Code) -> str:
    return (
        f"\n### {code.name}\n\n{code.summary}\n\n"
        f"- Cause: {code.cause}\n- Remedy: {code.remedy}\n- Exit code: {code.exit_code}\n"
    )
