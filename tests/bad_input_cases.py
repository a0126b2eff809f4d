"""The bad inputs of a first hour with the program, and the answer to each. ``test_bad_input`` runs them."""

from __future__ import annotations

import json

from tests.bad_input_support import SEARCHED, Case

DOCUMENT = """\
apiVersion: training.zhongjing.dev/v1alpha1
kind: TrainingPipeline
metadata: {name: demo}
spec:
  base: {tiny: {maxPositions: 128}}
  sources:
  - {name: talks, uri: talks.jsonl, kind: dialogue}
  - {name: ranked, uri: ranked.jsonl, kind: ranking}
  stages:
    sft: {data: [{source: talks}], precision: fp32, maxLength: 64}
    rm: {data: [{source: ranked}], precision: fp32, maxLength: 64}
    ppo: {data: [{source: talks}], precision: fp32, maxLength: 64, maxPromptLength: 32, maxNewTokens: 16}
"""
TALKS = '{"instruction": "感冒怎么办？", "output": "多喝水，注意休息。"}\n' * 3
RANKED = '{"prompt": "感冒怎么办？", "answers": ["多喝水，注意休息。", "不用管。"]}\n' * 3
FILES = {"my.yaml": DOCUMENT, "talks.jsonl": TALKS, "ranked.jsonl": RANKED}
CLUSTER = "clusters: [{name: c}]\ncontexts: [{name: prod, context: {cluster: c}}]\ncurrent-context: prod\n"
PRETRAIN = DOCUMENT.replace("    sft:", "    pretrain: {data: [{source: talks}], maxLength: 64}\n    sft:")


def with_set(*assignments: str) -> tuple[str, ...]:
    """The document with fields overridden."""
    return ("--local", "-f", "my.yaml", *(word for each in assignments for word in ("--set", each)))


def model(rows: int, entries: int, positions: int = 64) -> dict[str, str]:
    """A base's folder, as far as it is looked at before anything starts."""
    tokenizer = {"model": {"vocab": {f"t{number}": number for number in range(entries)}}, "added_tokens": []}
    return {
        "base/config.json": json.dumps({"vocab_size": rows, "max_position_embeddings": positions}),
        "base/tokenizer.json": json.dumps(tokenizer),
    }


USAGE = [
    Case("unknown option", "InvalidOption", 2, ["--unknown", "--help"], ["--local", "--unknown"]),
    Case("unknown stage", "InvalidOption", 2, ["dpo", "ppo"], ["--local", "--stage", "dpo"]),
    Case(
        "two documents",
        "InvalidOption",
        2,
        ["--file and --recipe", "give --file or --recipe, not both"],
        ["--local", "-f", "my.yaml", "--recipe", "tiny"],
    ),
    Case(
        "options of a cluster",
        "InvalidOption",
        2,
        ["--namespace", "leave one of them out"],
        ["--local", "-f", "my.yaml", "-n", "team"],
    ),
    Case("no cluster", "NoCluster", 3, ["no usable kubeconfig", "--local"], ["-f", "my.yaml"]),
    Case(
        "a kubeconfig without an address",
        "InvalidKubeconfig",
        3,
        ["Expected key cluster", "kubectl config get-contexts"],
        ["-f", "my.yaml"],
        files={"config": CLUSTER},
        environment={"KUBECONFIG": "config"},
    ),
    Case(
        "a cluster that does not answer",
        "ApiUnreachable",
        3,
        ["127.0.0.1:9"],
        ["-f", "my.yaml"],
        files={
            "config": CLUSTER.replace("{name: c}]", "{name: c, cluster: {server: 'https://127.0.0.1:9'}}]")
        },
        environment={"KUBECONFIG": "config"},
    ),
    Case(
        "a workdir that is a file",
        "InvalidOption",
        2,
        ["--workdir", "my.yaml"],
        ["--local", "-f", "my.yaml", "--workdir", "my.yaml"],
    ),
    Case(
        "a workdir that cannot be made",
        "UnusableWorkdir",
        2,
        ["--workdir my.yaml/runs", "another folder"],
        ["--local", "-f", "my.yaml", "--workdir", "my.yaml/runs"],
        said="demo: runs in my.yaml/runs\n",
    ),
    *(
        Case(
            f"{verb[0]} where nothing was run",
            "NothingRuns",
            3,
            ["zhongjing-runs", "submit --local"],
            [*verb, "--local"],
            module="zhongjing",
            json=verb[0] not in ("logs", "stop"),
        )
        for verb in (["status"], ["logs"], ["stop"], ["resume"], ["pull", "tiny/ppo", "model"])
    ),
    Case("status without anything", "NoCluster", 3, ["--local"], ["status"], module="zhongjing"),
]

DOCUMENTS = [
    Case(
        "a document that does not exist",
        "DocumentNotFound",
        2,
        ["gone.yaml: there is no such file"],
        ["--local", "-f", "gone.yaml"],
    ),
    Case("an unknown recipe", "UnknownRecipe", 2, ["'teeny'", "tiny"], ["--local", "--recipe", "teeny"]),
    Case(
        "YAML that does not parse",
        "InvalidYaml",
        2,
        ["my.yaml, line 3, column 1", "line and column"],
        files={"my.yaml": "spec:\n  seed: 1\n\tbase: 2\n"},
    ),
    Case(
        "YAML with an open bracket",
        "InvalidYaml",
        2,
        ["my.yaml, line 3, column"],
        files={"my.yaml": "spec:\n  sources: [{name: a, uri: b}\n  stages: {}\n"},
    ),
    Case("no document", "NotATrainingPipeline", 2, ["my.yaml", "config show"], files={"my.yaml": "- 1\n"}),
    Case(
        "another object",
        "NotATrainingPipeline",
        2,
        ["ConfigMap"],
        files={"my.yaml": "kind: ConfigMap\nspec: {}\n"},
    ),
    Case(
        "an unknown key",
        "UnknownField",
        2,
        ["my.yaml, line 10", "spec.stages.sft.learningRte", "did you mean 'learningRate'"],
        files={"my.yaml": DOCUMENT.replace("sft: {data", "sft: {learningRte: 1, data")},
    ),
    Case(
        "an unknown key by --set",
        "UnknownField",
        2,
        ["spec.stages.sft.epoch", "did you mean 'epochs'"],
        with_set("spec.stages.sft.epoch=2"),
    ),
    Case(
        "an unknown stage in the document",
        "UnknownStage",
        2,
        ["spec.stages.dpo", "pretrain"],
        files={"my.yaml": DOCUMENT.replace("    rm:", "    dpo:")},
    ),
    Case(
        "a stage that the document lacks",
        "UnknownStage",
        2,
        ["the pipeline has no stage pretrain", "sft, rm, ppo"],
        ["--local", "-f", "my.yaml", "--stage", "pretrain"],
    ),
    Case("a wrong type", "InvalidValue", 2, ["spec.seed", "'many'"], with_set("spec.seed=many")),
    Case(
        "out of range",
        "InvalidValue",
        2,
        ["spec.stages.rm.learningRate", "greater than or equal to 0", "-1"],
        with_set("spec.stages.rm.learningRate=-1"),
    ),
    Case(
        "a quantity of nothing",
        "InvalidValue",
        2,
        ["spec.stages.rm.resources.memory"],
        with_set("spec.stages.rm.resources.memory=lots"),
    ),
    Case(
        "a field that is missing",
        "MissingField",
        2,
        ["spec.sources[0].kind"],
        files={"my.yaml": DOCUMENT.replace(", kind: dialogue", "")},
    ),
    Case(
        "an override of nothing",
        "InvalidOverride",
        2,
        ["spec.sources.talk.uri", "talks, ranked"],
        with_set("spec.sources.talk.uri=a.jsonl"),
    ),
    Case(
        "a stage from where it cannot start",
        "InvalidReference",
        2,
        ["spec.stages.rm.from", "'sft'", "base"],
        with_set("spec.stages.rm.from=sft"),
    ),
    Case(
        "a variable that is not set",
        "UnsetVariable",
        2,
        ["CORPORA", "spec.sources[0].uri", "export"],
        with_set("spec.sources.talks.uri=${CORPORA}/talks.jsonl"),
    ),
    Case(
        "rm without its input",
        "MissingInput",
        2,
        ["rm needs the result of pretrain", "--stage pretrain"],
        ["--local", "-f", "my.yaml", "--stage", "rm"],
        files={"my.yaml": PRETRAIN},
    ),
    Case(
        "a source of the wrong kind for its stage",
        "WrongSourceKind",
        2,
        ["spec.stages.rm.data[0]", "'talks' is of kind dialogue", "rm reads ranking"],
        with_set("spec.stages.rm.data.ranked.source=talks"),
    ),
]

DATA = [
    Case(
        "a source that does not exist",
        "SourceNotFound",
        2,
        ["nothing is at", "no.jsonl", "spec.sources.talks.uri", "wait: true"],
        with_set("spec.sources.talks.uri=no.jsonl"),
    ),
    Case(
        "a source of another store",
        "SourceNotFound",
        2,
        ["s3://corpora/talks.jsonl", "the store of its own workdir", "name their path"],
        with_set("spec.sources.talks.uri=s3://corpora/talks.jsonl"),
    ),
    Case(
        "a source of an unknown scheme",
        "InvalidUri",
        2,
        ["ftp://", "spec.sources.talks.uri", "s3://"],
        with_set("spec.sources.talks.uri=ftp://corpora/talks.jsonl"),
    ),
    Case(
        "an example that there is not",
        "UnknownRecipe",
        2,
        ["'talks'", "dialogues"],
        with_set("spec.sources.talks.uri=example://talks"),
    ),
    Case(
        "an empty corpus",
        "EmptySource",
        2,
        ["source talks has no records", "spec.sources.talks.uri", "data inspect talks.jsonl"],
        files={"talks.jsonl": "\n\n"},
    ),
    Case(
        "a corpus of blank answers",
        "NoGoodRecord",
        2,
        ["none of the 2 records of source talks", "talks.jsonl line 1", "data inspect"],
        files={"talks.jsonl": f'{{"instruction": "{SEARCHED}", "output": ""}}\n' * 2},
    ),
    Case(
        "a corpus of an unknown layout",
        "UnknownLayout",
        2,
        ["none of the 2 records", "talks.jsonl line 1", "columns"],
        files={"talks.jsonl": f'{{"标题": "{SEARCHED}"}}\n' * 2},
    ),
    Case(
        "a corpus of another kind",
        "UnknownLayout",
        2,
        ["(kind dialogue) can be used", "ranks answers", "correct its kind"],
        files={"talks.jsonl": RANKED},
    ),
    Case(
        "one answer to each question",
        "TooFewAnswers",
        2,
        ["only one answer is ranked", "ranked.jsonl line 1", "two ranked answers"],
        files={"ranked.jsonl": f'{{"prompt": "{SEARCHED}", "answers": ["多喝水。"]}}\n'},
    ),
    Case(
        "a corpus whose upload was cut short",
        "UnreadableSource",
        2,
        ["talks.jsonl", "gzip archive is cut short", "upload it again"],
        files={"talks.jsonl": b"\x1f\x8b\x08\x00\x00\x00\x00\x00"},
    ),
]

MODELS_AND_MACHINE = [
    Case(
        "sequences longer than the model's positions",
        "TooLongForModel",
        2,
        ["spec.stages.sft.maxLength", "maxLength 129", "128 positions", "at most 128"],
        with_set("spec.stages.sft.maxLength=129"),
    ),
    Case(
        "sequences longer than a given model's positions",
        "TooLongForModel",
        2,
        ["spec.stages.sft.maxLength", "63 positions", "config.json"],
        with_set("spec.base={uri: ./base}"),
        files=model(10, 10, positions=63),
    ),
    Case(
        "a base whose tokenizer does not match",
        "TokenizerMismatch",
        2,
        ["the tokenizer makes ids up to 10", "10 rows", "base", "tokenizer files"],
        with_set("spec.base={uri: ./base}"),
        files=model(10, 11),
    ),
    Case(
        "a base without a model",
        "ModelNotFound",
        2,
        ["spec.base.uri", "config.json"],
        with_set("spec.base={uri: ./base}"),
        files={"base/readme.md": "nothing"},
    ),
    Case(
        "an adapter for a base",
        "NotAFullModel",
        2,
        ["spec.base.uri", "adapter", "--merged"],
        with_set("spec.base={uri: ./base}"),
        files={"base/adapter_config.json": "{}"},
    ),
    Case(
        "more workers than the machine has cores",
        "TooManyWorkers",
        2,
        ["spec.stages.rm.workers", "4096 cores", "at most"],
        with_set("spec.stages.rm.workers=4096", "spec.stages.rm.globalBatchSize=4096"),
    ),
    Case(
        "more memory than the machine has",
        "TooManyWorkers",
        2,
        ["spec.stages.rm.resources", "64.0Ti of memory", "not one worker fits"],
        with_set("spec.stages.rm.resources.memory=64Ti"),
    ),
    Case(
        "a GPU where there is none",
        "NoGpu",
        2,
        ["spec.stages.rm.resources.gpus", "gpus: 0"],
        with_set("spec.stages.rm.resources.gpus=1"),
        environment={"CUDA_VISIBLE_DEVICES": ""},
    ),
]

EARLY = [*USAGE, *DOCUMENTS, *DATA, *MODELS_AND_MACHINE]
"""Refused before anything is started."""

# What only a running store can tell. {bucket} is an empty bucket, {nobody} an endpoint where nothing listens.
INSPECT = ("data", "inspect", "--kind", "dialogue")
STORES = [
    Case(
        "an unknown access key",
        "AccessDenied",
        3,
        ["InvalidAccessKeyId: The access key ID", "{bucket}/talks.jsonl", "AWS_ACCESS_KEY_ID"],
        [*INSPECT, "{bucket}/talks.jsonl"],
        environment={"AWS_ACCESS_KEY_ID": "someone"},
    ),
    Case(
        "a wrong secret",
        "AccessDenied",
        3,
        ["does not accept these credentials", "AWS_SECRET_ACCESS_KEY"],
        [*INSPECT, "{bucket}/*.jsonl"],
        environment={"AWS_SECRET_ACCESS_KEY": "something"},
    ),
    Case(
        "no credentials",
        "InvalidStorageSettings",
        2,
        ["no credentials", "AWS_ACCESS_KEY_ID"],
        [*INSPECT, "{bucket}/talks.jsonl"],
        environment={
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    ),
    Case(
        "an endpoint that is none",
        "InvalidStorageSettings",
        2,
        ["'minio:9000'", "http(s)://"],
        [*INSPECT, "{bucket}/talks.jsonl"],
        environment={"AWS_ENDPOINT_URL": "minio:9000"},
    ),
    Case(
        "a store that is down",
        "StorageUnreachable",
        3,
        ["did not answer for 5 seconds", "127.0.0.1", "AWS_ENDPOINT_URL"],
        [*INSPECT, "{bucket}/talks.jsonl"],
        environment={"AWS_ENDPOINT_URL": "{nobody}"},
    ),
    Case(
        "a bucket that does not exist",
        "BucketNotFound",
        3,
        ["'no-such-bucket' does not exist at http://127.0.0.1", "make the bucket"],
        [*INSPECT, "s3://no-such-bucket/talks.jsonl"],
    ),
    Case(
        "an object that does not exist",
        "SourceNotFound",
        2,
        ["nothing is there", "{bucket}/talks.jsonl"],
        [*INSPECT, "{bucket}/talks.jsonl"],
    ),
]

SMALL = """\
metadata: {name: small}
spec:
  base: {tiny: {hiddenSize: 64, intermediateSize: 128, layers: 2, vocabularySize: 512, maxPositions: 128}}
  sources:
  - {name: talks, uri: "example://dialogues?scale=0.2", kind: dialogue}
  stages:
    pretrain:
      &common
      data: [{source: talks}]
      precision: fp32
      epochs: 100
      maxSteps: 240
      maxLength: 64
      globalBatchSize: 4
      microBatchSize: 4
      learningRate: 1.0e-3
      evaluations: 1
      maxEvaluationSamples: 8
      checkpoints: {everySteps: 4, keep: 3}
      retries: 0
    sft: {<<: *common, maxSteps: 4}
"""
"""A run of seconds that takes many checkpoints, for the cases that need one."""
