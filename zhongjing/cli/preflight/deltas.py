"""Looks at a published delta and its root, as far as both are folders of this machine.

Hours of merging tell in a job what names and shapes tell here.
"""

from __future__ import annotations

from pathlib import Path

from zhongjing.cli.preflight.shapes import shapes_of
from zhongjing.codes import model as codes
from zhongjing.config.sources import DeltaRule
from zhongjing.errors import DataError

_VOCABULARY_TENSORS = ("embed_tokens.weight", "lm_head.weight")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def check_delta(delta: Path, root: Path, rule: DeltaRule) -> None:
    """Holds a delta against its root.

    Args:
        delta: the published difference, with config and tokenizer.
        root: the model that it is to be added to.
        rule: by which it was published.

    Raises:
        DataError: the delta has no tokenizer, a file is damaged, a tensor is missing on one side, or has a
            shape by which the two cannot be added.
    """
    if not any((delta / name).is_file() for name in _TOKENIZERS):
        raise DataError(
            "the delta has no tokenizer: that of the merged model is the delta's own",
            code=codes.UNUSABLE_TOKENIZER,
            where=str(delta),
            remedy=f"fetch all files of the delta, one of {', '.join(_TOKENIZERS)} among them",
        )
    ours, theirs = shapes_of(delta), shapes_of(root)
    if ours is None or theirs is None:
        return
    for missing, folder in ((ours.keys() - theirs.keys(), root), (theirs.keys() - ours.keys(), delta)):
        if missing:
            raise DataError(
                f"tensor {min(missing)} is not in this model ({len(missing)} missing)",
                code=codes.DELTA_MISMATCH,
                where=str(folder),
            )
    for name in ours:
        # Vocabularies grow: Ziya's rows stand whole, and Vicuna's that its root does not have.
        whole = name.endswith(_VOCABULARY_TENSORS)
        grown = whole and ours[name][1:] == theirs[name][1:] and ours[name][0] > theirs[name][0]
        if ours[name] != theirs[name] and not (grown or (whole and rule == "fengshen")):
            raise DataError(
                f"tensor {name} is {theirs[name]} in the root, {ours[name]} in the delta",
                code=codes.DELTA_MISMATCH,
                where=str(root),
            )
