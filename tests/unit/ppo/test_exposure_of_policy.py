"""What a policy remembers is asked of the policy's adapter: not of the reference, not of the critic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.ppo_support import make_folders, make_settings, ppo_inputs, random_prompts
from zhongjing.data.samples import PackedRow
from zhongjing.model.adapters import load_adapter
from zhongjing.model.base import load_base
from zhongjing.model.causal import hidden_states
from zhongjing.train.exposure import reader_of
from zhongjing.train.ppo.program import PpoProgram


def test_the_reader_is_the_policy(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, "llama")
    program = PpoProgram(make_settings(), ppo_inputs(folders, random_prompts(16), random_prompts(4)))
    program.module.eval()
    reader = reader_of(program)
    assert reader is not None
    row = PackedRow.of([np.arange(5, 15), np.arange(8, 12)])
    alone = load_adapter(load_base(folders.base, dtype=torch.float32), folders.sft, "default").eval()
    with torch.no_grad():
        torch.testing.assert_close(reader.read(row), hidden_states(alone, row))


def test_what_is_no_language_model_has_no_reader() -> None:
    assert reader_of(object()) is None
