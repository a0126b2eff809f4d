"""The small pipelines that are killed: every stage long enough to be hit at several moments."""

from __future__ import annotations

LARGE = "faults"
SMALL = "small"
QUICK = "quick"
ITERATION_STEPS = 4  # PPO's optimizer steps a rollout (ppoEpochs)

_DOCUMENT = """\
metadata: {{name: {name}}}
spec:
  base:
    tiny:
      hiddenSize: {hidden}
      intermediateSize: {intermediate}
      layers: 2
      vocabularySize: {vocabulary}
      maxPositions: 256
  sources:
  - {{name: textbook, uri: "example://textbook", kind: text}}
  - {{name: dialogues, uri: "example://dialogues", kind: dialogue}}
  - {{name: rankings, uri: "example://rankings", kind: ranking}}
  - {{name: prompts, uri: "example://prompts", kind: prompts}}
  stages:
    pretrain:
      &common
      data: [{{source: textbook}}]
      precision: fp32
      epochs: 100
      maxSteps: {pretrain}
      maxLength: 96
      globalBatchSize: 8
      microBatchSize: 4
      learningRate: 1.0e-3
      evaluations: 4
      maxEvaluationSamples: 32
      workers: 2
      checkpoints: {{everySteps: {every}}}
      progressDeadlineSeconds: {deadline}
    sft: {{<<: *common, data: [{{source: dialogues}}], maxSteps: {sft}, workers: 1}}
    rm: {{<<: *common, data: [{{source: rankings}}], microBatchSize: 2, maxSteps: {rm}, workers: 1}}
    ppo:
      <<: *common
      data: [{{source: prompts}}]
      ppoEpochs: 4
      maxPromptLength: 64
      maxNewTokens: 32
      maxSteps: {ppo}
"""


def _document(name: str, hidden: int, vocabulary: int, every: int, deadline: int, **steps: int) -> str:
    """The steps are by stage. Starting a worker takes half of ``deadline`` (seconds) on a busy machine."""
    sizes = {"hidden": hidden, "intermediate": hidden * 11 // 4, "vocabulary": vocabulary}
    return _DOCUMENT.format(name=name, every=every, deadline=deadline, **sizes, **steps)


def large() -> str:
    """For the run of many kills: pretraining's checkpoints are uploaded by a process of their own."""
    return _document(LARGE, 128, 2048, every=15, deadline=60, pretrain=240, sft=240, rm=120, ppo=80)


def small(name: str = SMALL) -> str:
    """For runs that nothing happens to, on this machine and on a cluster.

    A step of sft takes 10 to 30 ms, and a stop is seen some two seconds later: before the last one.
    """
    return _document(name, 64, 1024, every=10, deadline=1800, pretrain=100, sft=600, rm=160, ppo=24)


def quick() -> str:
    """For a look at every stage: a checkpoint or two of each, two iterations of PPO."""
    return _document(QUICK, 64, 1024, every=10, deadline=1800, pretrain=24, sft=16, rm=16, ppo=8)


def cluster(name: str) -> str:
    """For a cluster: every stage long enough that a fault reaches it after its first checkpoint."""
    return _document(name, 128, 1024, every=20, deadline=120, pretrain=400, sft=500, rm=240, ppo=80)
