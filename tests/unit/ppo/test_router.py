"""Every role must be what PEFT makes of the same folders: outputs, gradients, storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.ppo_support import reward_by_peft
from zhongjing.config.stages import Lora
from zhongjing.data.samples import PackedRow
from zhongjing.errors import DataError, TrainingError
from zhongjing.model.adapters import ADAPTER_WEIGHTS, AdapterFile, read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.causal import hidden_states
from zhongjing.model.reward import head_rewards
from zhongjing.model.router import AdapterRouter, Part
from zhongjing.train.ppo.artifact import write_critic, write_policy
from zhongjing.train.ppo.roles import PpoModule

FAMILIES = ["llama", "qwen2", "qwen3"]
Modules = Callable[..., PpoModule]


def ids_of(rows: int, columns: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, (rows, columns), generator=torch.Generator().manual_seed(seed))


def packed(ids: torch.Tensor) -> PackedRow:
    """The rows of ``ids`` one after the other."""
    return PackedRow.of(list(ids.numpy()))


def logits(module: PpoModule, ids: torch.Tensor, *parts: Part) -> torch.Tensor:
    with module.router.open(*parts):
        found: torch.Tensor = module.model(input_ids=ids, use_cache=False).logits
    return found


def policy_by_peft(module: PpoModule, base: Path, sft: Path, out: Path) -> PeftModel:
    """The policy as a user would load it: PEFT on the base, from the folder that PPO writes."""
    write_policy(
        module.router, out / "policy", out / "scratch", sft=sft, lora=module.settings.lora, base=str(base)
    )
    loaded: PeftModel = PeftModel.from_pretrained(load_base(base, dtype=torch.float32), str(out / "policy"))
    return loaded.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_in_one_batch_equal_models_of_peft(
    module_of: Modules, folders_of: Callable[[str], Any], tmp_path: Path, family: str
) -> None:
    module, folders = module_of(family), folders_of(family)
    ids = ids_of(8)
    parts = (Part("policy", 27), Part("reward", 9), Part("reference", 18), Part("critic", 18))
    with torch.no_grad():
        with module.router.open(*parts):
            hidden = hidden_states(module.model, packed(ids)).view(8, 9, -1)
        routed = module.model.lm_head(hidden)
        policy = policy_by_peft(module, folders.base, folders.sft, tmp_path)
        reference = PeftModel.from_pretrained(
            load_base(folders.base, dtype=torch.float32), str(folders.sft)
        ).eval()
        reward = reward_by_peft(folders.base, folders.reward)
        torch.testing.assert_close(routed[:3], policy(input_ids=ids[:3]).logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(routed[4:6], reference(input_ids=ids[4:6]).logits, rtol=1e-5, atol=1e-5)
        # The classifier reads the last token that is not padding: the last column here.
        scores = reward(input_ids=ids).logits[:, 0]
        torch.testing.assert_close(module.score_reward(packed(ids)), scores, rtol=1e-5, atol=1e-5)
        critic = head_rewards(hidden[6:], module.critic_head)[:, -1]
        torch.testing.assert_close(critic, scores[6:], rtol=1e-5, atol=1e-5)  # it starts as a copy
    assert (routed[:3] - logits(module, ids[:3], Part("reference"))).abs().max() > 1e-2


def _separate_gradients(
    module: PpoModule, folders: Any, tmp_path: Path, ids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the same loss in two models of PEFT: policy (its stacked adapter) and critic."""
    policy = policy_by_peft(module, folders.base, folders.sft, tmp_path)
    write_critic(
        module.router,
        module.critic_head,
        tmp_path / "critic",
        reward=folders.reward,
        base=str(folders.base),
    )
    critic = reward_by_peft(folders.base, tmp_path / "critic")
    policy.train()
    for name, parameter in [*policy.named_parameters(), *critic.named_parameters()]:
        parameter.requires_grad_("lora_" in name)
    (policy(input_ids=ids).logits * weights).sum().backward()
    critic(input_ids=ids).logits.sum().backward()
    path = "layers.0.mlp.down_proj.lora_A"
    grads = []
    for model in (policy, critic):
        found = [p.grad for name, p in model.named_parameters() if path in name]
        assert len(found) == 1
        assert found[0] is not None
        grads.append(found[0])
    return grads[0], grads[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_separate_models(
    module_of: Modules,
    folders_of: Callable[[str], Any],
    tmp_path: Path,
    family: str,
    checkpointing: bool,
) -> None:
    module, folders = module_of(family, gradientCheckpointing=checkpointing), folders_of(family)
    module.train()
    ids = ids_of(3)
    weights = torch.randn(3, 9, module.model.config.vocab_size, generator=torch.Generator().manual_seed(1))
    with module.router.open(Part("policy", 27), Part("critic", 27)):
        hidden = hidden_states(module.model, packed(ids).twice()).view(6, 9, -1)
    loss = (module.model.lm_head(hidden[:3]) * weights).sum()
    loss = loss + head_rewards(hidden[3:], module.critic_head)[:, -1].sum()
    # Another route is opened between forward and backward: the recomputation must not follow it.
    with torch.no_grad(), module.router.open(Part("reference")):
        module.model.model(input_ids=ids, use_cache=False)
    loss.backward()
    by_policy, by_critic = _separate_gradients(module, folders, tmp_path, ids, weights)
    named = dict(module.router.parameters_of("ppo"))
    rank = module.settings.lora.rank
    ours = named["model.layers.0.mlp.down_proj.lora_A"].grad
    # PEFT's stack has the SFT adapter's rows first, and (equal scalings) one factor on the whole.
    torch.testing.assert_close(ours, by_policy[-rank:], rtol=1e-4, atol=1e-5)
    critic = dict(module.router.parameters_of("critic"))["model.layers.0.mlp.down_proj.lora_A"].grad
    torch.testing.assert_close(critic, by_critic, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for name, p in module.named_parameters() if not p.requires_grad)


def test_checkpointing_by_others_is_refused(module_of: Modules) -> None:
    module = module_of("llama")
    for layer in module.model.model.layers:
        layer.gradient_checkpointing = True
    with pytest.raises(RuntimeError, match="by the router"), module.router.open(Part("policy")):
        pass


def test_only_policy_and_critic_learn_and_that_never_changes(module_of: Modules) -> None:
    module = module_of("llama")
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.endswith((".ppo", ".critic", "critic_head")) for name in trained)
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == name.endswith((".ppo", ".critic", "critic_head"))
    module.router.check_trainable()
    next(p for _, p in module.router.parameters_of("sft")).requires_grad_(True)
    with pytest.raises(TrainingError, match=r"requires_grad of .*sft"):
        module.router.check_trainable()


def test_all_roles_share_one_copy_of_the_base(module_of: Modules, folders_of: Callable[[str], Any]) -> None:
    module = module_of("qwen2")
    base = load_base(folders_of("qwen2").base, dtype=torch.float32)

    def storage(model: torch.nn.Module) -> dict[int, int]:
        kept = [*model.parameters(), *(b for b in model.buffers())]
        return {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in kept}

    adapters = sum(
        p.numel() * p.element_size()
        for name in ("sft", "rm", "ppo", "critic")
        for _, p in module.router.parameters_of(name)
    )
    head = module.critic_head.numel() * 4
    assert sum(storage(module).values()) == sum(storage(base).values()) + adapters + head


def test_a_route_is_needed_and_must_fit(module_of: Modules) -> None:
    module = module_of("llama")
    with pytest.raises(RuntimeError, match="no route"):
        module.model(input_ids=ids_of(2), use_cache=False)
    with pytest.raises(RuntimeError, match="3 tokens"):
        logits(module, ids_of(2), Part("policy", 2), Part("critic", 1))
    with pytest.raises(KeyError, match="judge"):
        logits(module, ids_of(2), Part("judge"))
    with pytest.raises(RuntimeError, match="open already"), module.router.open(Part("policy")):
        logits(module, ids_of(2), Part("policy"))


def test_fused_stack_equals_the_stack(module_of: Modules) -> None:
    module = module_of("qwen3")
    ids = ids_of(2)
    with torch.no_grad():
        plain = logits(module, ids, Part("policy"))
        module.router.fuse("policy")
        with module.router.open(Part("policy"), fused=True):
            fused = module.model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=2e-6)
    module.router.drop_fused()
    assert not any(layer.fused for layer in module.router.layers.values())


def _changed(adapter: AdapterFile, **config: Any) -> AdapterFile:
    return AdapterFile(adapter.folder, {**adapter.config, **config}, adapter.tensors)


def test_adapters_of_other_bases_are_refused(folders_of: Callable[[str], Any], settings: Any) -> None:
    folders = folders_of("llama")
    sft, reward = read_adapter(folders.sft), read_adapter(folders.reward)
    wide = {name: torch.zeros(t.shape[0], t.shape[1] + 2) for name, t in sft.tensors.items()}
    router = AdapterRouter(load_base(folders.base, dtype=torch.float32))
    with pytest.raises(DataError, match="another base"):
        router.add_file("sft", AdapterFile(sft.folder, sft.config, wide))
    # Also once layers are routed, where the layers of the base have other names.
    router.add_file("rm", reward)
    with pytest.raises(DataError, match="another base"):
        router.add_file("sft", AdapterFile(sft.folder, sft.config, wide))
    router.add_file("sft", sft)

    def build(first: AdapterFile, second: AdapterFile) -> None:
        PpoModule(load_base(folders.base, dtype=torch.float32), first, second, settings(), 0)

    with pytest.raises(DataError, match="stands on s3://elsewhere"):
        build(sft, _changed(reward, base_model_name_or_path="s3://elsewhere"))
    with pytest.raises(DataError, match="no `score` head"):
        build(sft, sft)


def test_an_adapter_of_the_output_layer_is_refused(folders_of: Callable[[str], Any]) -> None:
    folders = folders_of("llama")
    sft = read_adapter(folders.sft)
    more = {**sft.tensors, "base_model.model.lm_head.weight": torch.zeros(320, 32)}
    router = AdapterRouter(load_base(folders.base, dtype=torch.float32))
    with pytest.raises(DataError, match="lm_head"):
        router.add_file("sft", AdapterFile(sft.folder, sft.config, more))


def test_a_fresh_adapter_changes_nothing_and_follows_its_seed(folders_of: Callable[[str], Any]) -> None:
    base = load_base(folders_of("qwen2").base, dtype=torch.float32)
    ids = ids_of(2)
    with torch.no_grad():
        before = base(input_ids=ids, use_cache=False).logits
        router = AdapterRouter(base)
        state = torch.random.get_rng_state()
        lora = Lora.model_validate({"rank": 4, "dropout": 0.0})
        for name, seed in (("one", 1), ("same", 1), ("other", 2)):
            router.add_fresh(name, lora, seed)
        assert torch.equal(state, torch.random.get_rng_state())
        router.define("role", ["one"])
        with router.open(Part("role")):
            assert torch.equal(base(input_ids=ids, use_cache=False).logits, before)
    a = {name: dict(router.parameters_of(name)) for name in ("one", "same", "other")}
    path = "model.layers.1.self_attn.k_proj.lora_A"
    assert torch.equal(a["one"][path], a["same"][path])
    assert not torch.equal(a["one"][path], a["other"][path])
    # Every linear layer of the decoder, and not the output layer.
    assert len(router.layers) == 14
    with pytest.raises(DataError, match="dropout"):
        router.add_fresh("noisy", Lora(), 1)
    with pytest.raises(DataError, match="no linear layer called 'nothing'"):
        router.add_fresh("none", Lora.model_validate({"dropout": 0.0, "targetModules": ["nothing"]}), 1)


def test_without_sft_adapter_the_base_is_the_reference(
    folders_of: Callable[[str], Any], settings: Any, tmp_path: Path
) -> None:
    folders = folders_of("llama")
    module = PpoModule(
        load_base(folders.base, dtype=torch.float32), None, read_adapter(folders.reward), settings(), 0
    )
    ids = ids_of(2)
    with torch.no_grad():
        plain = load_base(folders.base, dtype=torch.float32)(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(logits(module, ids, Part("reference")), plain)
        torch.testing.assert_close(logits(module, ids, Part("policy")), plain)
    write_policy(
        module.router, tmp_path / "out", tmp_path / "scratch", sft=None, lora=module.settings.lora, base="b"
    )
    assert read_adapter(tmp_path / "out").rank == module.settings.lora.rank
    assert (tmp_path / "out" / ADAPTER_WEIGHTS).is_file()
