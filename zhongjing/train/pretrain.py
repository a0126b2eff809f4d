"""Continued pretraining (paper, section 3): windows of medical text, all tokens are targets.

Started by ``jobs/pretrain.py``; alone: ``run_loop(PretrainProgram(...), settings, context, seed=0)``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from peft import PeftModel

from zhongjing.model.export import merge_adapter
from zhongjing.train.causal_program import CausalProgram


class PretrainProgram(CausalProgram):
    """Continued pretraining, all parameters by default, with dropout on the attention probabilities.

    Args: as :class:`zhongjing.train.causal_program.CausalProgram`.
    """

    def finish(self, folder: Path) -> dict[str, Any]:
        """Writes a full model, whatever was tuned: the stages after it put adapters of their own upon it."""
        if not isinstance(self.model, PeftModel):
            return super().finish(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            extra = super().finish(Path(scratch))
            merge_adapter(self._base_folder, Path(scratch), folder)
        return extra
