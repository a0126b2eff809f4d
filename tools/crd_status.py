"""Schema of a TrainingPipeline's status.

Only the controller writes it. Its fields are those of ``zhongjing.pipeline.state``, a layer above this one: a
test holds the two equal. There are hardly any bounds here: a message that is longer than expected
must not keep the controller from reporting the status.
"""

from __future__ import annotations

from typing import Any

from zhongjing.config.stages import Stage

Schema = dict[str, Any]


def _field(type_: str, description: str, **more: Any) -> Schema:
    return {"type": type_, "description": description, **more}


def _text(description: str, **more: Any) -> Schema:
    return _field("string", description, **more)


def _time(description: str) -> Schema:
    return _text(f"{description} ISO 8601, UTC.")


def _integer(description: str) -> Schema:
    return _field("integer", description, format="int64")


def _free(description: str) -> Schema:
    """An object that is kept as it is."""
    return _field("object", description, **{"x-kubernetes-preserve-unknown-fields": True})


def _items(description: str, properties: Schema) -> Schema:
    """A list that is written as a whole."""
    items = {"type": "object", "properties": properties}
    return _field("array", description, items=items, **{"x-kubernetes-list-type": "atomic"})


def _condition() -> Schema:
    return {
        "type": "object",
        "description": "One condition; of the four types at most one is True.",
        "required": ["type", "status"],
        "properties": {
            "type": _text("Progressing, Suspended, Complete or Failed.", maxLength=316),
            "status": _text("True, False or Unknown.", enum=["True", "False", "Unknown"]),
            "reason": _text(
                "One word. Of Failed: a code, explained in docs/troubleshooting.md. Of Progressing: Running, "
                "Queued, ClusterStarting, ClusterNotReady, WaitingForInput, DoesNotFit, NoRoom, Retrying, "
                "Suspending."
            ),
            "message": _text("A sentence for people."),
            "remedy": _text("What to do about it."),
            "lastTransitionTime": _text("When status last changed.", format="date-time"),
            "observedGeneration": _integer("metadata.generation that the condition speaks of."),
        },
    }


def _failure() -> Schema:
    return {
        "type": "object",
        "description": "What the last attempt said of its end, when it could say something.",
        "properties": {
            "error": _text("Class of the error."),
            "code": _text("Code of the error, explained in docs/troubleshooting.md."),
            "message": _text("What is wrong."),
            "where": _text("Field, file or URI that is wrong."),
            "remedy": _text("What to do about it."),
            "retriable": _field("boolean", "Whether another attempt may do better."),
            "tracebackUri": _text("Object with the traceback."),
        },
    }


def _progress() -> Schema:
    return {
        "type": "object",
        "description": "How far the running attempt is.",
        "properties": {
            "activity": _text(
                "starting, preparing, prepared (waits for its workers), training, evaluating, saving, done, "
                "suspended or failed."
            ),
            "step": _integer("Optimizer steps done."),
            "totalSteps": _integer("Optimizer steps of the whole stage."),
            "percent": _field("number", "Part of the steps that is done. Unit: %."),
            "etaSeconds": _field("number", "Time to the end of the stage. Unit: s."),
            "metrics": _field("object", "Latest metrics by name.", additionalProperties={"type": "number"}),
            "message": _text("What the attempt is busy with."),
            "sources": _items(
                "What became of the records of each source.",
                {
                    "name": _text("Name in spec.sources."),
                    "read": _integer("Records read."),
                    "kept": _integer("Records used."),
                    "train": _integer("Of those: trained on."),
                    "validation": _integer("Of those: held out."),
                    "test": _integer("Of those: test data."),
                    "truncated": _integer("Of those: cut to the longest sequence."),
                    "unanswered": _integer("Of those: without a last question that has no answer."),
                    "tooLong": _integer("Dropped: an answer alone is too long."),
                    "duplicates": _integer("Dropped: equal to an earlier record."),
                    "leaks": _integer("Dropped: equal to test data."),
                    "tied": _integer("Dropped: rankings whose answers all tie."),
                    "quarantined": _integer("Dropped: cannot be used."),
                    "canaries": _integer("Planted copies of canaries, not among the records read."),
                    "unused": _free("Keys of the records that went into none, with records and characters."),
                    "layouts": _field(
                        "object",
                        "Records by the way in which they were read.",
                        additionalProperties={"type": "integer", "format": "int64"},
                    ),
                },
            ),
            "mixture": _items(
                "What each weighted group gives to an epoch.",
                {
                    "name": _text("Kind of data, or source."),
                    "samples": _integer("Training samples that there are."),
                    "drawn": _integer("Training samples of an epoch; what is above samples is repeated."),
                },
            ),
            "warnings": _field(
                "array",
                "What is doubtful about the data or the result, with the field to change.",
                items={"type": "string"},
                **{"x-kubernetes-list-type": "atomic"},
            ),
            "updatedAt": _time("When the attempt last said so."),
        },
    }


def stage_status() -> Schema:
    """Schema of ``status.stages.<stage>``."""
    return {
        "type": "object",
        "properties": {
            # Bounded because rules of the whole object read it, and rules are priced.
            "state": _text(
                "Pending, Skipped (was done before), Queued (submitted), Running, Succeeded, Failed, "
                "Suspended, WaitingForInput or Blocked (it cannot fit; or what it needs failed, waits or was "
                "never made).",
                maxLength=64,
            ),
            "key": _text("Hash of what may change the result; part of the artifacts' place."),
            "reason": _text("Of a failed stage: a code, explained in docs/troubleshooting.md."),
            "message": _text("A sentence for people."),
            "remedy": _text("What to do about it."),
            "failure": _failure(),
            "attempt": _integer("Number of the last attempt; it never falls."),
            "failures": _integer("Failed attempts that count against retries."),
            "failedAtStep": _integer("Checkpoint at the last failure; a later one wins the retries back."),
            "submissionId": _text("Id of the Ray job: <pipeline>-<uid8>-<stage>-a<attempt>."),
            "specHash": _text("Hash of what the job was asked to do."),
            "confirmed": _field("boolean", "Whether Ray has been seen to know the attempt."),
            "stopReason": _text("Why a running attempt was asked to stop."),
            "stopRequestedAt": _time("When it was asked."),
            "manifestUri": _text("Object that says what the stage made; the stage is done when it exists."),
            "modelUri": _text("Folder of the model that the stage made."),
            "fields": _free("What the key is a hash of."),
            "changes": _field(
                "array",
                "Fields that made an earlier result not count.",
                items={"type": "string"},
                **{"x-kubernetes-list-type": "atomic"},
            ),
            "submittedAt": _time("When the attempt was submitted."),
            "startedAt": _time("When it began to run, put off by the time it waited for workers."),
            "finishedAt": _time("When it ended."),
            "nextRetryAt": _time("When the next attempt is due."),
            "unknownSince": _time("Since when Ray has not known the job."),
            "waitingSince": _time("Since when the attempt is prepared and waits for its workers."),
            "progress": _progress(),
        },
    }


def status_schema() -> Schema:
    """Schema of ``status``."""
    return {
        "type": "object",
        "description": "The observed state, written by the controller.",
        "properties": {
            "release": _text("Release of the chart that runs the pipeline."),
            "observedGeneration": _integer("metadata.generation that the status speaks of."),
            "conditions": {
                "type": "array",
                "description": "Progressing, Suspended, Complete and Failed; at most one is True.",
                "items": _condition(),
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
            "targets": _text("Stages that are to be brought about."),
            "stage": _text("The stage that runs, or that the pipeline stands at."),
            "state": _text("State of that stage, or of the pipeline when it has ended."),
            "progress": _text("How much of that stage is done, as 42%."),
            "eta": _text("Time to the end of that stage, as 3m20s."),
            "metric": _text("Latest loss or reward."),
            "startTime": _text("First submission of the observed generation.", format="date-time"),
            "completionTime": _text("When the pipeline completed.", format="date-time"),
            "failures": _integer("Failed attempts of all stages since startTime."),
            "updatedAt": _time("When the status was last written."),
            "stages": {
                "type": "object",
                "description": "Each stage by name.",
                "properties": {
                    stage.value: {"description": f"The observed state of {stage}.", **stage_status()}
                    for stage in Stage
                },
            },
            "sources": {
                "type": "array",
                "description": "Sources that were waited for and have come.",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": _text("Name in spec.sources."),
                        "digest": _text("Hash over the objects' digests."),
                        "objects": _integer("Number of objects."),
                        "listingUri": _text("Object that holds the frozen listing."),
                    },
                },
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
            "resolvedSpec": _free("spec with every default filled in, as it was frozen."),
        },
    }


def printer_columns() -> list[Schema]:
    """What ``kubectl get tp`` shows; reason and message with ``-o wide``."""

    def column(name: str, path: str, description: str, type_: str = "string", priority: int = 0) -> Schema:
        shown = {"name": name, "type": type_, "description": description, "jsonPath": path}
        return {**shown, "priority": priority} if priority else shown

    return [
        column("Targets", ".status.targets", "Stages to bring about."),
        column("Stage", ".status.stage", "The stage that runs."),
        column("State", ".status.state", "Its state."),
        column("Progress", ".status.progress", "Part of its steps that is done."),
        column("ETA", ".status.eta", "Time to its end."),
        column("Metric", ".status.metric", "Latest loss or reward."),
        column("Age", ".metadata.creationTimestamp", "Time since the pipeline was created.", "date"),
        column(
            "Reason",
            '.status.conditions[?(@.status=="True")].reason',
            "Reason of the condition that holds.",
            priority=1,
        ),
        column(
            "Message",
            '.status.conditions[?(@.status=="True")].message',
            "Message of the condition that holds.",
            priority=1,
        ),
    ]
