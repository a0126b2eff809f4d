"""The program without an engine: rollouts, minibatches, the ratio, ranks, the result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError

from tests.ppo_support import Prompts, reward_by_peft
from zhongjing.errors import ConfigError, DataError, TrainingError
from zhongjing.model.adapters import read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.router import Part
from zhongjing.model.tokenizer import end_ids, load_tokenizer
from zhongjing.train.ppo.episodes import (
    Episode,
    pack_episodes,
    response_mask,
    reward_row,
    to_columns,
    to_steps,
    turn_end_ids,
)
from zhongjing.train.ppo.program import PpoProgram
from zhongjing.train.ppo.rollout import Group
from zhongjing.train.stages.program import StepBatches

TEMPLATE_WITH_BREAK = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}\n<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Programs = Callable[..., PpoProgram]


def learn(program: PpoProgram, plan: StepBatches, rate: float = 1e-2) -> dict[str, float]:
    """One plain gradient step; returns the sums divided by the denominator."""
    sums: dict[str, float] = {}
    parameters = [p for p in program.module.parameters() if p.requires_grad]
    for batch in plan.micro_batches:
        loss = program.module(batch)
        (loss.total / max(plan.denominator, 1.0)).backward()
        for name, value in loss.sums.items():
            sums[name] = sums.get(name, 0.0) + float(value) / max(plan.denominator, 1.0)
    with torch.no_grad():
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.data -= rate * parameter.grad
            parameter.grad = None
    return sums


def test_the_first_ratio_is_one_and_later_ones_are_not(program_of: Programs) -> None:
    program = program_of(ppoEpochs=2, minibatches=2, microBatchTokens=32)
    program.module.train()
    assert program.total_steps == 2 * 3 * 4 - 4  # ceil(2 epochs x 20 prompts / 8) = 5 rollouts of 4 steps
    first = program.step_batches(0)
    assert first.metrics_kind == "rollout"
    sums = learn(program, first)
    assert sums["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert sums["update_kl"] == pytest.approx(0.0, abs=1e-6)
    assert sums["clip_fraction"] == 0.0
    later = learn(program, program.step_batches(1))
    assert abs(later["ratio"] - 1.0) > 1e-5
    assert program.can_checkpoint(0)
    assert program.can_checkpoint(4)
    assert not any(program.can_checkpoint(step) for step in (1, 2, 3))


def test_a_ratio_that_is_not_one_is_an_error(program_of: Programs) -> None:
    program = program_of()
    plan = program.step_batches(0)
    with torch.no_grad():
        for name, parameter in program.module.router.parameters_of("ppo"):
            if name.endswith("lora_B"):
                parameter.data += 0.05
    with pytest.raises(TrainingError, match="first log ratio"):
        learn(program, plan)


def test_minibatches_use_every_episode_once_a_pass(program_of: Programs) -> None:
    program = program_of(ppoEpochs=2, minibatches=4, microBatchTokens=16)
    plans = [program.step_batches(step) for step in range(8)]
    for start in (0, 4):
        ids = [b.row.input_ids[0].tolist() for plan in plans[start : start + 4] for b in plan.micro_batches]
        assert len(ids) == len({tuple(row) for row in ids}) == 8
    assert [plan.samples for plan in plans] == [2, 2, 2, 2, 0, 0, 0, 0]
    for plan in plans:
        assert plan.denominator == sum(batch.target_tokens for batch in plan.micro_batches)
    assert plans[0].epoch < plans[-1].epoch == 8 / 20


def test_rollout_metrics_and_rewards(program_of: Programs) -> None:
    program = program_of(missingEosPenalty=2.0, klCoef=0.1)
    metrics = program.step_batches(0).metrics
    rollout = program._rollout
    assert rollout is not None
    # A fresh policy is the reference.
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    ended = torch.tensor([episode.ended for episode in rollout.episodes])
    expected = ((rollout.scores - 0.1) / 0.7).clamp(-10, 10) - 2.0 * (~ended).float()
    assert metrics["reward"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert metrics["eos_share"] == pytest.approx(float(ended.float().mean()))
    assert metrics["response_length"] == pytest.approx(
        float(np.mean([len(episode.response) for episode in rollout.episodes]))
    )
    assert metrics["kl_coef"] == 0.1
    # With lambda 0.95 and no KL the return of a last token is the episode's reward.
    last = rollout.mask.sum(1) - 1
    torch.testing.assert_close(rollout.returns.gather(1, last[:, None])[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_scores_are_those_of_the_reward_model(program_of: Programs, folders_of: Callable[[str], Any]) -> None:
    program, folders = program_of(), folders_of("llama")
    program.step_batches(0)
    rollout = program._rollout
    assert rollout is not None
    oracle = reward_by_peft(folders.base, folders.reward)
    closing = 2  # <|im_end|> of the trained tokenizer
    for position, episode in enumerate(rollout.episodes):
        body = episode.response[:-1] if episode.ended else episode.response
        row = torch.tensor([[*episode.prompt.tolist(), *body.tolist(), closing]])
        with torch.no_grad():
            score = oracle(input_ids=row).logits[0, 0]
        torch.testing.assert_close(rollout.scores[position], score, rtol=1e-4, atol=1e-5)


class _Sums:
    """Stands for two ranks' all-reduce: threads wait for each other and take the sum."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=60)
        self._given: dict[int, torch.Tensor] = {}

    def all_reduce_sum(self, group: Group, tensor: torch.Tensor) -> torch.Tensor:
        if group.world_size == 1:
            return tensor
        self._given[group.rank] = tensor
        self._barrier.wait()
        total = self._given[0] + self._given[1]
        self._barrier.wait()
        return total


def test_two_ranks_make_the_rollout_of_one(program_of: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = _Sums()
    monkeypatch.setattr(Group, "all_reduce_sum", lambda group, tensor: sums.all_reduce_sum(group, tensor))  # noqa: PLW0108 - binds
    fields = {"ppoEpochs": 1, "minibatches": 2, "globalBatchSize": 6, "microBatchTokens": 24}
    alone = program_of(**fields)
    both = [program_of(rank=rank, world_size=2, **fields) for rank in (0, 1)]
    plan = alone.step_batches(0)
    with ThreadPoolExecutor(2) as threads:
        plans = [future.result() for future in [threads.submit(one.step_batches, 0) for one in both]]
        held_out = [future.result() for future in [threads.submit(one.evaluate) for one in both]]
    whole = alone._rollout
    assert whole is not None
    for program in both:
        made = program._rollout
        assert made is not None
        for first, second in zip(made.episodes, whole.episodes, strict=True):
            assert np.array_equal(first.response, second.response)
        torch.testing.assert_close(made.advantages, whole.advantages, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.returns, whole.returns, rtol=1e-4, atol=1e-5)
    assert len(plans[0].micro_batches) == len(plans[1].micro_batches)
    assert plans[0].denominator == plans[1].denominator == plan.denominator
    losses = [
        sum(float(program.module(batch).total.detach()) for program, p in pairs for batch in p.micro_batches)
        for pairs in ([(alone, plan)], list(zip(both, plans, strict=True)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
    assert held_out[0] == held_out[1]
    assert held_out[0] == pytest.approx(alone.evaluate(), rel=1e-4, abs=1e-5)


def test_a_filler_weighs_nothing_and_reaches_every_parameter(program_of: Programs) -> None:
    program = program_of()
    loss = program.module(pack_episodes([]))
    loss.total.backward()
    assert float(loss.total.detach()) == 0.0
    for name, parameter in program.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any()


def test_a_run_that_stopped_goes_on_alike(program_of: Programs) -> None:
    fields = {"ppoEpochs": 1, "klTarget": 0.5, "klHorizon": 20}
    program = program_of(**fields)
    for step in range(2):
        learn(program, program.step_batches(step))
    weights = {name: p.detach().clone() for name, p in program.module.named_parameters() if p.requires_grad}
    state = program.state_dict()
    assert state["kl"]["coefficient"] != program_of(**fields).state_dict()["kl"]["coefficient"]
    expected = program.step_batches(2)
    again = program_of(**fields)
    again.load_state_dict(state)
    for name, parameter in again.module.named_parameters():
        if name in weights:
            parameter.data.copy_(weights[name])
    found = again.step_batches(2)
    assert found.metrics == expected.metrics
    for one, other in zip(found.micro_batches, expected.micro_batches, strict=True):
        assert torch.equal(one.row.input_ids, other.row.input_ids)
        assert torch.equal(one.advantages, other.advantages)
    middle = program_of(ppoEpochs=2)
    with pytest.raises(TrainingError, match="resume from a checkpoint"):
        middle.step_batches(1)


def test_passes_end_early_above_max_kl(program_of: Programs) -> None:
    program = program_of(ppoEpochs=4, maxKl=1e-4)
    learn(program, program.step_batches(0), rate=0.0)
    second = program.step_batches(1)
    assert second.denominator > 0  # nothing has moved yet
    for name, parameter in program.module.router.parameters_of("ppo"):
        if name.endswith("lora_B"):
            parameter.data += 0.05
    learn(program, second, rate=0.0)
    for step in (2, 3):
        left = program.step_batches(step)
        assert left.denominator == 0.0
        assert left.samples == 0
        assert learn(program, left)["ratio"] == 0.0
    assert program.step_batches(4).denominator > 0  # a new rollout


def test_only_the_critic_learns_while_it_warms_up(program_of: Programs) -> None:
    program = program_of(criticWarmupSteps=1, ppoEpochs=1, entropyCoef=0.1)
    router = program.module.router
    for rollout, moves in ((0, False), (1, True)):
        plan = program.step_batches(rollout)
        for batch in plan.micro_batches:
            program.module(batch).total.backward()
        policy = [p.grad for name, p in router.parameters_of("ppo") if name.endswith("lora_B")]
        assert any(bool(g.any()) for g in policy if g is not None) is moves
        assert any(bool(p.grad.any()) for _, p in router.parameters_of("critic") if p.grad is not None)
        for parameter in program.module.parameters():
            parameter.grad = None


def test_the_result_loads_with_peft_alone(
    program_of: Programs, folders_of: Callable[[str], Any], tmp_path: Path
) -> None:
    program, folders = program_of(ppoEpochs=1), folders_of("llama")
    for step in range(2):
        learn(program, program.step_batches(step), rate=0.1)
    extra = program.finish(tmp_path / "model", {})
    assert extra == {"klCoef": 0.05, "rewardMean": 0.1, "rewardStd": 0.7}
    assert read_adapter(tmp_path / "model").rank == 8  # 4 of SFT, 4 of PPO
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    assert (tmp_path / "model" / "generation_config.json").is_file()
    ids = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    policy = PeftModel.from_pretrained(
        load_base(folders.base, dtype=torch.float32), str(tmp_path / "model")
    ).eval()
    critic = reward_by_peft(folders.base, tmp_path / "model" / "critic")
    with torch.no_grad():
        with program.module.router.open(Part("policy")):
            ours = program.module.model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(policy(input_ids=ids).logits, ours, rtol=1e-5, atol=1e-5)
        # The value before a token that follows the row is the critic's output at the row's last token.
        row = Episode(ids[0].numpy(), np.array([5]), False)
        value = program.module.score_policy(pack_episodes([row]))[1][0, 7]
        raw = critic(input_ids=ids[:1]).logits[0, 0]
        torch.testing.assert_close((raw - 0.1) / 0.7, value, rtol=1e-5, atol=1e-5)
        assert abs(raw - reward_by_peft(folders.base, folders.reward)(input_ids=ids[:1]).logits[0, 0]) > 1e-4


def test_evaluation_repeats_itself_and_may_be_absent(program_of: Programs) -> None:
    program = program_of()
    first = program.evaluate()
    assert first == program.evaluate()
    assert set(first) >= {"reward", "kl", "eos_share", "response_length", "score", "entropy"}
    assert first["objective_low"] < first["objective"] < first["objective_high"]
    assert first["prompts"] > 1
    assert program.evaluate(Prompts([])) == {}


def test_the_best_is_by_the_objective_and_not_by_the_reward_alone(program_of: Programs) -> None:
    program = program_of(klCoef=0.3, klEstimator="k3", klTarget=0.1, klHorizon=8)
    program.load_state_dict({"kl": {"coefficient": 7.0}})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # away from the reference
        for name, parameter in program.module.router.parameters_of("ppo"):
            if name.endswith("lora_B"):
                parameter.data.normal_(0.0, 0.2, generator=generator)
    found = program.evaluate()
    assert program.best_metric == "objective"
    assert not program.best_is_lower
    assert found["kl"] > 0.01
    # The configured weight, not the one that it was adapted to: checkpoints stay comparable.
    assert found["objective"] == pytest.approx(found["reward"] - 0.3 * found["kl"], rel=1e-4)


def test_groups_and_learning_rates(program_of: Programs) -> None:
    program = program_of(learningRate=1e-3, criticLearningRate=4e-3, weightDecay=0.1)
    policy, critic = program.parameter_groups()
    assert (policy["lr_scale"], critic["lr_scale"]) == (1.0, 4.0)
    assert policy["weight_decay"] == critic["weight_decay"] == 0.1
    listed = [id(p) for group in (policy, critic) for p in group["params"]]
    trained = [id(p) for p in program.module.parameters() if p.requires_grad]
    assert sorted(listed) == sorted(trained)
    with pytest.raises(ConfigError, match="criticLearningRate"):
        program_of(learningRate=0.0, criticLearningRate=1e-3)


def test_what_cannot_be_trained_is_refused(program_of: Programs) -> None:
    with pytest.raises(ValidationError, match="dropout"):
        program_of(lora={"rank": 4, "dropout": 0.1})
    with pytest.raises(DataError, match="128 positions"):
        program_of(maxNewTokens=120)


def test_columns_and_steps_are_inverse() -> None:
    episodes = [
        Episode(np.array([1, 2, 3]), np.array([4, 5]), True),
        Episode(np.array([6]), np.array([7, 8, 9]), False),
    ]
    batch = pack_episodes(episodes)
    assert batch.row.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch.row.lengths == (5, 4)
    assert batch.targets.int().tolist() == [[0, 0, 0, 1, 1, 0, 1, 1, 1]]
    steps = torch.tensor([[0.4, 0.5, 0.0, 0.0], [0.7, 0.8, 0.9, 0.0]])
    mask = response_mask(episodes, 4)
    placed = to_columns(batch, steps, mask)
    assert torch.equal(placed * 10, torch.tensor([[0.0, 0, 0, 4, 5, 0, 7, 8, 9]]))
    assert torch.equal(to_steps(batch, placed, mask), steps)


def test_the_reward_reads_answers_closed_as_in_training() -> None:
    prompt = np.array([1, 2])
    episodes = [
        Episode(prompt, np.array([7, 50]), True),  # ended by the turn's end
        Episode(prompt, np.array([7, 51]), True),  # ended by the document's end
        Episode(prompt, np.array([7, 8, 9]), False),
    ]
    row = reward_row(episodes, [50], [50, 51])
    assert row.input_ids.tolist() == [[1, 2, 7, 50, 1, 2, 7, 50, 1, 2, 7, 8, 9, 50]]
    assert row.lengths == (4, 4, 6)
    # A template that writes 6 between the text and the turn's end: it stands there once.
    episodes = [Episode(prompt, np.array([7, 6, 50]), True), Episode(prompt, np.array([7]), False)]
    row = reward_row(episodes, [6, 50], [50, 51])
    assert row.input_ids.tolist() == [[1, 2, 7, 6, 50, 1, 2, 7, 6, 50]]


def test_answers_close_as_the_template_closes_them(folders_of: Callable[[str], Any]) -> None:
    tokenizer = load_tokenizer(folders_of("llama").base)
    end, document = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    assert turn_end_ids(tokenizer) == (end,)
    assert set(end_ids(tokenizer)) == {end, document}
    # A base whose eos_token ends documents; and a template with a line break before the turn's end.
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", "<|im_start|>"
    tokenizer.chat_template = TEMPLATE_WITH_BREAK
    assert turn_end_ids(tokenizer) == (*tokenizer.encode("\n", add_special_tokens=False), end)
    assert set(end_ids(tokenizer)) == {end, document}
