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
      maxSteps: {steps}
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
    rm: {{<<: *common, data: [{{source: rankings}}], microBatchSize: 2, maxSteps: {ranked}, workers: 1}}
    ppo:
      <<: *common
      data: [{{source: prompts}}]
      ppoEpochs: 4
      maxPromptLength: 64
      maxNewTokens: 32
      maxSteps: {ppo}
"""


def large() -> str:
    """For the run of many kills: pretraining's checkpoints are uploaded by a process of their own."""
    return _DOCUMENT.format(
        name=LARGE,
        hidden=128,
        intermediate=352,
        vocabulary=2048,
        steps=240,
        sft=240,
        ranked=120,
        ppo=80,
        every=15,
        deadline=60,  # of a frozen worker; a starved machine may need half of it to start one
    )


def small(name: str = SMALL) -> str:
    """For runs that nothing happens to, on this machine and on a cluster."""
    return _DOCUMENT.format(
        name=name,
        hidden=64,
        intermediate=176,
        vocabulary=1024,
        steps=100,
        # A step takes 10 to 30 ms, and a stop is seen some two seconds later: before the last one.
        sft=600,
        ranked=160,
        ppo=24,
        every=10,
        deadline=1800,
    )


def quick() -> str:
    """For a look at every stage: a checkpoint or two of each, an iteration or two of PPO."""
    return _DOCUMENT.format(
        name=QUICK,
        hidden=64,
        intermediate=176,
        vocabulary=1024,
        steps=24,
        sft=16,
        ranked=16,
        ppo=8,
        every=10,
        deadline=1800,
    )


def cluster(name: str) -> str:
    """For a cluster: every stage long enough that a fault reaches it after its first checkpoint."""
    return _DOCUMENT.format(
        name=name,
        hidden=128,
        intermediate=352,
        vocabulary=1024,
        steps=400,
        sft=500,
        ranked=240,
        ppo=80,
        every=20,
        deadline=120,  # of a frozen worker; starting on a busy node takes half of it
    )
