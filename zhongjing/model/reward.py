"""The reward model: the pretrained base, a LoRA adapter, and a bias-free linear head read in fp32.

It is kept as what transformers and PEFT know: ``AutoModelForSequenceClassification(num_labels=1)`` with a
SEQ_CLS adapter whose ``modules_to_save`` is ``score``. The reward of a sequence is the head's output at its
last token (paper, section 3: "adds a linear layer to the original model").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from zhongjing.codes import model as codes
from zhongjing.config.stages import Lora, Quantization
from zhongjing.errors import DataError
from zhongjing.model.adapters import base_of, lora_config, write_adapter
from zhongjing.model.base import check_vocabulary, load_config, load_weights
from zhongjing.model.tokenizer import load_tokenizer, padding_id


def load_classifier(
    base_folder: Path,
    *,
    dtype: torch.dtype,
    quantization: Quantization = "none",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The base as a sequence classifier of one label; its head is fresh and fp32.

    Args:
        base_folder: full model in Hugging Face format, tokenizer included.
        dtype: number format of the weights.
        quantization: how the weights of linear layers are stored.
        device: where the weights go; none: the CPU.

    Raises:
        DataError: the folder is no full model, or its tokenizer does not fit it.
    """
    config = load_config(base_folder)
    check_vocabulary(base_folder, config)
    config.num_labels = 1
    config.use_cache = False
    config.pad_token_id = padding_id(load_tokenizer(base_folder))
    model = load_weights(
        AutoModelForSequenceClassification,
        base_folder,
        config,
        dtype,
        quantization=quantization,
        device=device,
    )
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise DataError(
            f"a {config.model_type} model has no linear `score` head",
            code=codes.UNSUPPORTED_MODEL,
            where=str(base_folder),
        )
    model.score.float()
    return model


def build_reward_model(
    base_folder: Path,
    lora: Lora,
    seed: int,
    dtype: torch.dtype,
    *,
    quantization: Quantization = "none",
    device: torch.device | None = None,
) -> PeftModel:
    """A reward model that has learnt nothing yet.

    Args:
        base_folder: the pretrained base (never SFT), in Hugging Face format with its tokenizer.
        lora: adapter settings.
        seed: of the adapter and the head; the head is normal with deviation 1 / sqrt(hidden + 1).
        dtype: number format of base and adapter; the head is fp32.
        quantization: how the weights of the base's linear layers are stored.
        device: where the weights go; none: the CPU.

    Raises:
        DataError: the folder cannot be used as a base.
    """
    model = load_classifier(base_folder, dtype=dtype, quantization=quantization, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = int(model.config.hidden_size)
        # Drawn on the CPU: the same seed is the same head on every device.
        head = torch.empty(1, hidden).normal_(std=(hidden + 1) ** -0.5)
        head_weight(model).data.copy_(head)
        reward = get_peft_model(model, lora_config(model, lora, head=True))
    assert isinstance(reward, PeftModel)
    return reward


def head_weight(model: PeftModel | PreTrainedModel) -> torch.nn.Parameter:
    """The head's weight [1, hidden]: the trainable copy where PEFT keeps one."""
    score: Any = base_of(model).score
    copies = getattr(score, "modules_to_save", None)
    weight = (copies["default"] if copies is not None else score).weight
    assert isinstance(weight, torch.nn.Parameter)
    return weight


def head_rewards(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rewards from hidden states, in fp32 whatever the model's number format.

    DeepSpeed casts the head with everything else; the product of a long half-precision sum is what would
    lose the difference between two good answers.

    Args:
        hidden: [..., hidden].
        weight: [1, hidden].

    Returns:
        Rewards, fp32 [...].
    """
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        return (hidden.float() @ weight.float().t()).squeeze(-1)


def save_reward_model(model: PeftModel, folder: Path, base: str) -> None:
    """Writes the adapter with its head (fp32) so that PEFT loads both onto the base's classifier.

    Args:
        model: as :func:`build_reward_model` made it.
        folder: where the files go.
        base: URI or path of the base, stored as ``base_model_name_or_path``.
    """
    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    head = "base_model.model.score.weight"
    state[head] = head_weight(model).detach().float()
    write_adapter(folder, model.peft_config["default"].to_dict(), state, base)
