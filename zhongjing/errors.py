"""Every error that Zhongjing raises on purpose.

::

    ZhongjingError                 has a message, a code, a place and a remedy
    ├── ConfigError                the document, a flag or the environment is wrong; names the field path
    ├── DataError                  a source, record, base model or adapter cannot be used as asked
    │   └── MissingInputError      something that should exist does not (yet); names what makes it
    ├── StorageError               the object store refused or is unreachable
    │   ├── NotFoundError          no such object
    │   ├── ConflictError          a conditional write lost (If-None-Match, If-Match)
    │   ├── CredentialsError       the store does not take the keys: nothing in it can be reached
    │   └── StorageUnavailableError  (transient) no answer within the deadline
    ├── BackendError               Ray, the supervisor or Kubernetes refused or is unreachable
    │   ├── ObjectNotFoundError    no such Kubernetes object
    │   ├── ObjectConflictError    another writer was first to change or to make a Kubernetes object
    │   └── BackendUnavailableError  (transient) no answer
    ├── LanguageModelError         a language model that is asked over HTTP refused, or may not be asked
    │   └── LanguageModelUnavailableError  (transient) no answer within the time allowed
    └── TrainingError              a stage cannot go on: names the step and the last good checkpoint

Classes are for programs: what to catch, and whether to retry (``TransientError`` is a mark beside the tree:
what carries it may be retried unchanged). Codes are for people: :mod:`zhongjing.codes` has a cause and a
remedy for each, and the exit code of the command.
"""

from __future__ import annotations

from zhongjing.codes import Code


class ZhongjingError(Exception):
    """An expected failure with a code, a place and a remedy.

    Args:
        message: what went wrong, in one sentence.
        code: from the catalogue (:mod:`zhongjing.codes`); it gives the exit code.
        where: the place, e.g. a field path (``spec.stages.sft.epochs``), file and line, or URI.
        remedy: what the user can do about it; the code's own unless given.
    """

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        where: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.code = code
        self.where = where
        self.remedy = remedy or code.remedy
        super().__init__(message, code, where, remedy)

    @property
    def exit_code(self) -> int:
        """Exit code of a command that ends with this error."""
        return self.code.exit_code

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  remedy: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Ray carries errors between processes by pickle; keyword-only arguments need telling.
        return (_rebuild, (type(self), self.message, self.code, self.where, self.remedy))

    def as_dict(self) -> dict[str, str | None]:
        """The machine-readable form that ``-o json`` prints."""
        return {
            "error": type(self).__name__,
            "code": self.code.name,
            "message": self.message,
            "where": self.where,
            "remedy": self.remedy,
        }


def _rebuild(
    kind: type[ZhongjingError], message: str, code: Code, where: str | None, remedy: str | None
) -> ZhongjingError:
    return kind(message, code=code, where=where, remedy=remedy)


class TransientError(Exception):
    """Marks an error that may pass by itself: the same call may be made again."""


class ConfigError(ZhongjingError):
    """The document, a flag or the environment is wrong."""


class DataError(ZhongjingError):
    """A source, record, base model or adapter cannot be used as asked."""


class MissingInputError(DataError):
    """An input that should exist does not; the remedy names the command that makes it."""


class StorageError(ZhongjingError):
    """The object store refused or is unreachable."""


class NotFoundError(StorageError):
    """There is no such object."""


class ConflictError(StorageError):
    """A conditional write lost: another writer was first."""


class CredentialsError(StorageError):
    """The object store does not take the keys of this process: nothing in it can be reached."""


class StorageUnavailableError(StorageError, TransientError):
    """The object store did not answer within its deadline; it may come back."""


class BackendError(ZhongjingError):
    """Ray, the supervisor or Kubernetes refused or is unreachable."""


class ObjectNotFoundError(BackendError):
    """There is no such Kubernetes object (any more)."""


class ObjectConflictError(BackendError):
    """Another writer changed a Kubernetes object first, or made one of its name."""


class BackendUnavailableError(BackendError, TransientError):
    """The backend did not answer; it may come back."""


class LanguageModelError(ZhongjingError):
    """A language model that is asked over HTTP refused, or may not be asked."""


class LanguageModelUnavailableError(LanguageModelError, TransientError):
    """The language model did not answer within the time allowed; it may come back."""


class TrainingError(ZhongjingError):
    """A stage cannot go on."""
