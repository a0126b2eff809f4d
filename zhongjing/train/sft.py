"""Supervised fine-tuning (paper, section 3): dialogues, every assistant turn is a target in one pass.

Started by ``jobs/sft.py``; alone: ``run_loop(SftProgram(...), settings, context, seed=0)``.
"""

from __future__ import annotations

from zhongjing.train.causal_program import CausalProgram


class SftProgram(CausalProgram):
    """Supervised fine-tuning. Dropout is the adapter's (``lora.dropout``); full tuning has none.

    Args: as :class:`zhongjing.train.causal_program.CausalProgram`.
    """
