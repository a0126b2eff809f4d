"""Every error that Zhongjing raises on purpose.

::

    ZhongjingError                 has a message, a place and a remedy; its exit code goes to the shell
    ├── ConfigError            2   the document, a flag or the environment is wrong; names the field path
    ├── DataError              2   a source, record, base model or adapter cannot be used as asked
    │   └── MissingInputError  2   something that should exist does not (yet); names what makes it
    ├── StorageError           3   the object store refused or is unreachable
    │   ├── NotFoundError      3   no such object
    │   ├── ConflictError      3   a conditional write lost (If-None-Match, If-Match)
    │   └── StorageUnavailableError  (transient) no answer within the deadline
    ├── BackendError           3   Ray, the supervisor or Kubernetes refused or is unreachable
    │   └── BackendUnavailableError  (transient) no answer
    └── TrainingError          1   a stage cannot go on: names the step and the last good checkpoint

``TransientError`` is a mark beside the tree: what carries it may be retried unchanged.
A caller learns two things from an error: whether to retry (``isinstance(e, TransientError)``) and what to
tell the user (``str(e)``).
"""

from __future__ import annotations


class ZhongjingError(Exception):
    """An expected failure with a place and a remedy.

    Args:
        message: what went wrong, in one sentence.
        where: the place, e.g. a field path (``spec.stages.sft.epochs``), file and line, or URI.
        remedy: what the user can do about it.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.where = where
        self.remedy = remedy
        super().__init__(message, where, remedy)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        # Ray carries errors between processes by pickle; keyword-only arguments need telling.
        return (_rebuild, (type(self), self.message, self.where, self.remedy))

    def as_dict(self) -> dict[str, str | None]:
        """The machine-readable form that ``-o json`` prints."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "remedy": self.remedy,
        }


def _rebuild(
    kind: type[ZhongjingError], message: str, where: str | None, remedy: str | None
) -> ZhongjingError:
    return kind(message, where=where, remedy=remedy)


class TransientError(Exception):
    """Marks an error that may pass by itself: the same call may be made again."""


class ConfigError(ZhongjingError):
    """The document, a flag or the environment is wrong."""

    exit_code = 2


class DataError(ZhongjingError):
    """A source, record, base model or adapter cannot be used as asked."""

    exit_code = 2


class MissingInputError(DataError):
    """An input that should exist does not; the remedy names the command that makes it."""


class StorageError(ZhongjingError):
    """The object store refused or is unreachable."""

    exit_code = 3


class NotFoundError(StorageError):
    """There is no such object."""


class ConflictError(StorageError):
    """A conditional write lost: somebody else wrote first."""


class StorageUnavailableError(StorageError, TransientError):
    """The object store did not answer within its deadline; it may come back."""


class BackendError(ZhongjingError):
    """Ray, the supervisor or Kubernetes refused or is unreachable."""

    exit_code = 3


class BackendUnavailableError(BackendError, TransientError):
    """The backend did not answer; it may come back."""


class TrainingError(ZhongjingError):
    """A stage cannot go on."""
