"""No text leaves the house before it is de-identified: what every step asks that sends text to an API."""

from __future__ import annotations

from zhongjing.codes import language_model as codes
from zhongjing.construct.manifest import SourceManifest
from zhongjing.errors import LanguageModelError

STEP = "deidentify"


def require_deidentified(
    manifest: SourceManifest | None, source: str, *, accept_identifiable: bool = False
) -> None:
    """Refuses a source whose records did not all go through de-identification.

    Args:
        manifest: of the source; None: it has none.
        source: its URI.
        accept_identifiable: the user says that the source holds no patient's text, or takes the risk.

    Raises:
        LanguageModelError: it is not de-identified (``NotDeidentified``).
    """
    if accept_identifiable or (manifest is not None and manifest.has_passed(STEP)):
        return
    raise not_deidentified(source, has_manifest=manifest is not None)


def not_deidentified(source: str, *, has_manifest: bool = True) -> LanguageModelError:
    """The refusal of a source."""
    what = f"its lineage has no step {STEP} for every record" if has_manifest else "it has no manifest"
    return LanguageModelError(
        f"the source would be sent to a language model, and {what}",
        code=codes.NOT_DEIDENTIFIED,
        where=source,
    )
