"""What the API server checks of a TrainingPipeline beyond types and bounds: rules in CEL.

The first part says again, in CEL, what the models' validators and the stage graph refuse. The second cannot
be said anywhere else: what a running attempt reads must not change under it.

Every rule is priced by the largest object that the schema lets in, and the API server refuses a CRD with a
rule that is too dear. Rules are asked at every write of a status, too: they must be cheap on large objects.
Only what Kubernetes 1.29 knows of CEL, and prices, is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zhongjing.config.pipeline import KINDS_OF_STAGE
from zhongjing.config.sources import KNOWN_DELTAS, TinyBase
from zhongjing.config.stages import SHORTEST_PROMPT, TRAINING, PpoSettings, Stage

Rule = dict[str, Any]

STAGES = list(Stage)
"""The stages, in order."""

# What `from` and `reward` may name besides places outside the pipeline (zhongjing.pipeline.graph).
INPUTS: dict[tuple[Stage, str], tuple[str, ...]] = {
    (Stage.PRETRAIN, "from"): ("base",),
    (Stage.SFT, "from"): ("base", Stage.PRETRAIN),
    (Stage.RM, "from"): ("base", Stage.PRETRAIN),
    (Stage.PPO, "from"): (Stage.SFT,),
    (Stage.PPO, "reward"): (Stage.RM,),
}
_MOST_PAIRS = 2048
_REQUIRED_INPUTS = {(Stage.PPO, "from"): Stage.SFT, (Stage.PPO, "reward"): Stage.RM}


def _rule(
    rule: str, message: str, *, at: str = "", says: str = "", reason: str = "FieldValueInvalid"
) -> Rule:
    """One entry of x-kubernetes-validations.

    Args:
        rule: CEL; true for a good object.
        message: of a refusal; also where ``says`` cannot be computed.
        at: path of the field to correct, from the place of the rule.
        says: CEL of the message. It cannot name the wrong value: the length of what a search finds counts as
            unbounded, and messages are priced too.
        reason: kind of the refusal, as the API has it.
    """
    result = {"rule": rule, "message": message, "reason": reason}
    if at:
        result["fieldPath"] = at
    if says:
        result["messageExpression"] = says
    return result


def _default(model: type[TinyBase] | type[PpoSettings], name: str) -> Any:
    return model.model_fields[name].default


def _names(values: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{value}'" for value in values) + "]"


def base_rules() -> list[Rule]:
    """Of ``spec.base``."""
    deltas = "|".join(name.replace(".", "[.]") for name in KNOWN_DELTAS)
    return [
        _rule(
            "[has(self.uri), has(self.delta) || has(self.root), has(self.tiny)].filter(way, way).size() == 1",
            "give exactly one of uri, delta with root, or tiny",
        ),
        _rule(
            "has(self.delta) == has(self.root)",
            "delta and root belong together: published deltas are useless without their root",
        ),
        _rule(
            f"!has(self.uri) || !self.uri.matches('(?i)^({deltas})/*$')",
            "this model is published as a difference to LLaMA: use base.delta with base.root",
            at=".uri",
        ),
        _rule(
            "has(self.deltaRule) ? has(self.delta)"
            f" : !has(self.delta) || self.delta.matches('(?i)^({deltas})/*$')",
            "deltaRule says how delta was published: fengshen (IDEA-CCNL) or fastchat (LMSYS)",
            at=".deltaRule",
        ),
        _rule(
            "!has(self.tiny) || (!has(self.maxPositions) && !has(self.ropeScaling))",
            "a tiny base has its positions in tiny.maxPositions",
            at=".maxPositions",
        ),
        _rule(
            "!has(self.ropeScaling) || !(self.ropeScaling.ropeType in ['yarn', 'llama3'])"
            " || (has(self.ropeScaling.originalMaxPositionEmbeddings) && (self.ropeScaling.ropeType == 'yarn'"
            " || (has(self.ropeScaling.lowFreqFactor) && has(self.ropeScaling.highFreqFactor))))",
            "yarn needs originalMaxPositionEmbeddings, llama3 also lowFreqFactor and highFreqFactor",
            at=".ropeScaling",
        ),
        *(
            _rule(
                f"!has(self.ropeScaling) || !has(self.ropeScaling.{low}) || !has(self.ropeScaling.{high})"
                f" || self.ropeScaling.{low} < self.ropeScaling.{high}",
                f"{low} must be less than {high}",
                at=".ropeScaling",
            )
            for low, high in (("lowFreqFactor", "highFreqFactor"), ("betaSlow", "betaFast"))
        ),
    ]


def tiny_rules() -> list[Rule]:
    """Of ``spec.base.tiny``."""
    heads = f"self.?heads.orValue({_default(TinyBase, 'heads')})"
    kv_heads = f"self.?kvHeads.orValue({_default(TinyBase, 'kv_heads')})"
    width = f"self.?hiddenSize.orValue({_default(TinyBase, 'hidden_size')})"
    return [
        _rule(
            # Rules are also asked of values that a bound refuses: nothing is divided by 0.
            f"{heads} < 1 || {kv_heads} < 1 || ({width} % {heads} == 0 && {heads} % {kv_heads} == 0)",
            "hiddenSize must be a multiple of heads, and heads of kvHeads",
        )
    ]


def source_rules() -> list[Rule]:
    """Of each entry of ``spec.sources``."""
    return [
        _rule("has(self.uri) || has(self.made)", "a source has a uri, or says how it is made", at=".uri"),
        _rule(
            "!has(self.made) || !has(self.uri) || self.uri.matches('^s3://[^/*?]+/[^*?]*[^/*?]/?$')",
            "what is made goes to an s3:// folder: write s3://<bucket>/<folder>, or leave uri out",
            at=".uri",
        ),
        _rule(
            "!has(self.canaries) || (has(self.kind) && self.kind in ['text', 'dialogue']"
            " && (!has(self.split) || self.split != 'test'))",
            "canaries are planted in texts and dialogues that are trained on",
            at=".canaries",
        ),
    ]


def made_rules() -> list[Rule]:
    """Of ``spec.sources[].made``."""
    return [
        _rule(
            "!self.steps.exists(step, step in ['normalize', 'expand']) || has(self.author)",
            "normalize and expand need an author",
            at=".author",
        ),
        _rule("!('check' in self.steps) || has(self.kg)", "check needs a knowledge graph", at=".kg"),
        _rule(
            "!('dedup' in self.steps) || self.steps[0] == 'dedup'",
            "dedup comes first: nothing is paid for twice",
            at=".steps",
        ),
        _rule(
            "!has(self.against) || self.against.size() == 0 || 'dedup' in self.steps",
            "against belongs to dedup",
            at=".against",
        ),
    ]


def author_rules() -> list[Rule]:
    """Of ``spec.sources[].made.author``."""
    return [_rule("!has(self.budget) || has(self.prices)", "a budget needs prices", at=".prices")]


def stage_rules(stage: Stage) -> list[Rule]:
    """Of ``spec.stages.<stage>``, a stage that trains."""
    rules = [
        _rule(
            "self.data.all(ref, has(ref.weight)) || !self.data.exists(ref, has(ref.weight))",
            "give a weight to every source of the stage or to none",
            at=".data",
        ),
        _rule(
            "self.?precision.orValue('auto') != 'fp16' || self.?resources.?gpus.orValue(0) != 0",
            "fp16 trains on GPUs only, and resources.gpus is 0: set it to 1, or precision to auto",
            at=".precision",
        ),
    ]
    if stage is Stage.SFT:
        rules.append(
            _rule(
                "self.?tuning.orValue('lora') != 'full' || self.?quantization.orValue('none') == 'none'",
                "a quantized base cannot be trained itself: set tuning: lora, or quantization: none",
                at=".quantization",
            )
        )
    if stage is Stage.PPO:
        batch = f"self.?globalBatchSize.orValue({_default(PpoSettings, 'global_batch_size')})"
        parts = f"self.?minibatches.orValue({_default(PpoSettings, 'minibatches')})"
        rules.append(
            _rule(
                f"{parts} < 1 || {batch} % {parts} == 0",
                "globalBatchSize must be a multiple of minibatches",
                at=".globalBatchSize",
            )
        )
        longest = f"self.?maxLength.orValue({_default(PpoSettings, 'max_length')})"
        response = f"self.?maxNewTokens.orValue({_default(PpoSettings, 'max_new_tokens')})"
        rules.append(
            _rule(
                f"{longest} - {response} >= {SHORTEST_PROMPT}",
                f"maxNewTokens leaves a prompt fewer than {SHORTEST_PROMPT} tokens of maxLength",
                at=".maxNewTokens",
            )
        )
    return rules


def spec_rules() -> list[Rule]:
    """Of ``spec``: what its parts say of each other."""
    made = "has(self.sources) && self.sources.exists(source, has(source.made))"
    there = {stage: f"has(self.stages.{stage})" for stage in STAGES}
    there[Stage.CONSTRUCT] = f"({there[Stage.CONSTRUCT]} || ({made}))"
    present = " || ".join(there.values())
    rules = [_rule(present, f"give at least one stage: {', '.join(STAGES)}", at=".stages")]
    rules += [
        _rule(
            f"!has(self.targets) || !('{stage}' in self.targets) || {there[stage]}",
            f"the pipeline has no stage {stage}",
            at=".targets",
        )
        for stage in STAGES
    ]
    rules.append(
        _rule(
            f"!has(self.stages.construct) || ({made})",
            "no source says how it is made: give one `made`, or leave the stage out",
            at=".stages.construct",
        )
    )
    rules += [_data_rule(stage) for stage in TRAINING]
    for stage, role in INPUTS:
        rules += _input_rules(stage, role)
    return rules


def _data_rule(stage: Stage) -> Rule:
    """That a stage's data are sources of this pipeline, of a kind it reads, and no test data.

    Two loops in each other: of very long lists it is the controller that finds what is wrong.
    """
    data = f"self.stages.{stage}.data"
    kinds = KINDS_OF_STAGE[stage]
    kind = f"source.kind in {_names(kinds)}"

    def found(condition: str = "") -> str:
        named = f"source.name == ref.source{condition}"
        return f"{data}.all(ref, self.sources.exists(source, {named}))"

    usable = found(f" && {kind} && source.?split.orValue('train') != 'test'")
    return _rule(
        f"!has(self.stages.{stage}) || (has(self.sources)"
        f" && ({data}.size() * self.sources.size() > {_MOST_PAIRS} || {usable}))",
        f"{stage} names a source that it cannot read",
        at=f".stages.{stage}.data",
        says=f"!has(self.sources) || !{found()} ? '{stage} names a source that is not in spec.sources'"
        f" : !{found(f' && {kind}')} ? '{stage} names a source of another kind: it reads {', '.join(kinds)}'"
        f" : '{stage} names a source that is test data (split: test)'",
    )


def _input_rules(stage: Stage, role: str) -> list[Rule]:
    """That a stage starts from something that it can start from, and that is there."""
    field = f"self.stages.{stage}.{role}"
    at = f".stages.{stage}"
    allowed = INPUTS[stage, role]
    refused = [name for name in ("base", *Stage) if name not in allowed]
    upstream = [name for name in allowed if name != "base"]
    rules = [
        _rule(
            f"!has(self.stages.{stage}) || !has({field}) || !({field} in {_names(refused)})",
            f"{role} of {stage} is {' or '.join(allowed)}, a folder, an s3:// URI or a hub id",
            at=f"{at}.{role}",
        )
    ]
    required = _REQUIRED_INPUTS.get((stage, role))
    if required is not None:
        rules.append(
            _rule(
                f"!has(self.stages.{stage}) || (has({field}) && {field} != '{required}')"
                f" || has(self.stages.{required})",
                f"{stage} needs stage {required}: add it, or name a place in {role}",
                at=at,
                reason="FieldValueRequired",
            )
        )
    elif upstream:
        rules.append(
            _rule(
                f"!has(self.stages.{stage}) || !has({field}) || {field} != '{upstream[0]}'"
                f" || has(self.stages.{upstream[0]})",
                f"the pipeline has no stage {upstream[0]}",
                at=f"{at}.{role}",
            )
        )
    return rules


def _runs(stage: Stage) -> str:
    """Whether Ray has an attempt; one that is still to be submitted reads nothing yet."""
    entry = f"oldSelf.?status.?stages.?{stage}"
    state = f"{entry}.?state.orValue('')"
    return f"({state} == 'Running' || ({state} == 'Queued' && {entry}.?confirmed.orValue(false)))"


def _same(path: str) -> str:
    """That the part at ``path`` is as it was; comparing optional values would count as unbounded."""
    now, before = f"self.{path}", f"oldSelf.{path}"
    return f"(has({now}) == has({before}) && (!has({now}) || {now} == {before}))"


_ADVICE = "suspend the pipeline first (spec.suspend: true), change it when it has stopped, and resume"


def transition_rules() -> list[Rule]:
    """Of the whole object: what an attempt that runs reads stays as it is until it has ended.

    A stage that does not run may change at any time; what depends on it is then run again. So may targets,
    suspend, limits, priority and everything else that is not read by a job.
    """
    rules = [
        _rule(
            f"!{_runs(stage)} || {_same(f'spec.stages.{stage}')}",
            f"{stage} runs, its settings cannot be changed: {_ADVICE}",
            at=f".spec.stages.{stage}",
            reason="FieldValueForbidden",
        )
        for stage in STAGES
    ]
    any_runs = " || ".join(_runs(stage) for stage in STAGES)
    rules += [
        _rule(
            f"!({any_runs}) || {_same(f'spec.{name}')}",
            f"a stage runs, {name} cannot be changed: {_ADVICE}",
            at=f".spec.{name}",
            reason="FieldValueForbidden",
        )
        for name in ("seed", "base", "storage")
    ]
    rules += [_sources_stay(any_runs), _test_data_stays(any_runs)]
    return rules


_IS_TEST = "({0}.?split.orValue('train') == 'test' || {0}.?testFraction.orValue(0.0) > 0.0)"


def _sources_stay(any_runs: str) -> Rule:
    """That the sources that running stages read, and all test data, are as they were."""
    before, now = "oldSelf.spec.sources", "self.spec.sources"
    read = " || ".join(
        f"({_runs(stage)} && has(oldSelf.spec.stages.{stage})"
        f" && oldSelf.spec.stages.{stage}.data.exists(ref, ref.source == source.name))"
        for stage in TRAINING
    )
    read += f" || ({_runs(Stage.CONSTRUCT)} && has(source.made))"
    return _rule(
        f"!({any_runs}) || !has({before}) || (has({now}) && {now} == {before}) || {before}.all(source,"
        f" (has({now}) && source in {now}) || !({_IS_TEST.format('source')} || {read}))",
        f"a stage that runs reads a source (or test data) that would change: {_ADVICE}",
        at=".spec.sources",
        reason="FieldValueForbidden",
    )


def _test_data_stays(any_runs: str) -> Rule:
    """That there is no more test data than there was: it is taken out of what every stage reads."""
    before, now = "oldSelf.spec.sources", "self.spec.sources"
    was_test = f"old.name == source.name && {_IS_TEST.format('old')}"
    return _rule(
        f"!({any_runs}) || !has({now}) || (has({before}) && {now} == {before}) || {now}.all(source,"
        f" !{_IS_TEST.format('source')} || (has({before}) && {before}.exists(old, {was_test})))",
        f"a stage runs, no source can become test data: {_ADVICE}",
        at=".spec.sources",
        reason="FieldValueForbidden",
    )
