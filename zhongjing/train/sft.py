"""Supervised fine-tuning (paper, section 3): dialogues, every assistant turn is a target in one pass.

Started by ``jobs/sft.py``; alone: ``run_loop(SftProgram(...), settings, context, seed=0)``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from zhongjing.config.stages import SftSettings
from zhongjing.data.samples import SampleSet
from zhongjing.train.causal_program import CausalProgram


class SftProgram(CausalProgram):
    """Supervised fine-tuning. Dropout is the adapter's (``lora.dropout``); full tuning has none.

    Args: as :class:`zhongjing.train.causal_program.CausalProgram`.
    """

    def __init__(
        self,
        settings: SftSettings,
        base_folder: Path,
        *,
        base_reference: str,
        tokenizer_folder: Path,
        train: SampleSet,
        validation: SampleSet,
        rank: int,
        world_size: int,
        device: torch.device,
        seed: int,
    ) -> None:
        super().__init__(
            settings,
            base_folder,
            base_reference=base_reference,
            tokenizer_folder=tokenizer_folder,
            train=train,
            validation=validation,
            rank=rank,
            world_size=world_size,
            device=device,
            seed=seed,
            attention_dropout=0.0,
        )
