"""Continued pretraining (paper, section 3): windows of medical text, all tokens are targets.

Started by ``jobs/pretrain.py``; alone: ``run_loop(PretrainProgram(...), settings, context, seed=0)``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from zhongjing.config.stages import PretrainSettings
from zhongjing.data.samples import SampleSet
from zhongjing.train.causal_program import CausalProgram


class PretrainProgram(CausalProgram):
    """Continued pretraining, all parameters by default, with dropout on the attention probabilities.

    Args: as :class:`zhongjing.train.causal_program.CausalProgram`.
    """

    def __init__(
        self,
        settings: PretrainSettings,
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
            attention_dropout=settings.dropout,
        )
