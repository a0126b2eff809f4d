"""Keys, lineage and what a source has passed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from zhongjing.config.sources import Columns, Kind, Source
from zhongjing.construct.manifest import (
    MANIFEST_NAME,
    Ancestor,
    SourceManifest,
    StepRecord,
    chain,
    find_manifest,
    key_of,
    parents_of,
)
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.records import Dialogue, Position, Record, Turn
from zhongjing.storage.manifest import FrozenObject, FrozenSource


@dataclass(frozen=True)
class Named:
    name: str
    version: int = 1
    settings: dict[str, object] = field(default_factory=dict)

    def parameters(self) -> dict[str, object]:
        return self.settings

    def apply(self, record: Record) -> Outcome:
        return Outcome((record,))


SOURCE = Source(name="raw", uri="s3://raw/all/", kind=Kind.DIALOGUE)
FROZEN = FrozenSource(
    name="raw", objects=[FrozenObject(uri="s3://raw/all/a.jsonl", size=3, digest="e-3")], digest="d"
)


def manifest(*steps: str, parents: list[Ancestor] | None = None, complete: bool = False) -> SourceManifest:
    return SourceManifest(
        key="k" + "".join(steps),
        kind=Kind.DIALOGUE,
        steps=[StepRecord(name=name, version=1) for name in steps],
        inputs=FROZEN.objects,
        input_digest="d",
        parents=parents or [],
        complete=complete,
        read=1,
        written=1,
        characters=2,
        parts=[FrozenObject(uri="part-00000.jsonl", size=5, digest="f")],
        created="2026-01-01T00:00:00Z",
        code_version="0",
    )


def test_the_key_covers_content_reading_steps_and_parameters_and_no_places() -> None:
    key = key_of(SOURCE, FROZEN, [Named("a")])
    moved = SOURCE.model_copy(update={"uri": "s3://elsewhere/", "name": "other", "keep_text": True})
    assert key_of(moved, FROZEN, [Named("a")]) == key
    others = [
        key_of(SOURCE, FROZEN.model_copy(update={"digest": "e"}), [Named("a")]),
        key_of(SOURCE.model_copy(update={"columns": Columns(prompt="q")}), FROZEN, [Named("a")]),
        key_of(SOURCE, FROZEN, [Named("a", 2)]),
        key_of(SOURCE, FROZEN, [Named("a", 1, {"k": 1})]),
        key_of(SOURCE, FROZEN, [Named("a"), Named("b")]),
        key_of(SOURCE, FROZEN, [Named("b"), Named("a")]),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_a_step_is_passed_only_if_all_records_went_through_it() -> None:
    clean = manifest("deidentify")
    assert clean.has_passed("deidentify")
    made = manifest("expand", parents=[clean.as_ancestor("s3://clean")], complete=True)
    assert made.has_passed("deidentify")
    assert made.has_passed("expand")
    assert [each.uri for each in chain(made.parents)] == ["s3://clean"]
    raw = manifest("normalize").as_ancestor("s3://raw")
    assert not manifest("x", parents=[clean.as_ancestor("c"), raw], complete=True).has_passed("deidentify")
    # An input without a manifest may hold anything.
    assert not manifest("x", parents=[clean.as_ancestor("c")], complete=False).has_passed("deidentify")


def test_parents_are_found_beside_the_inputs(tmp_path: Path) -> None:
    clean = manifest("deidentify")
    (tmp_path / MANIFEST_NAME).write_text(clean.model_dump_json())
    part = FrozenObject(uri=f"{tmp_path}/part-00000.jsonl", size=5, digest="x")
    assert find_manifest(None, str(tmp_path)) == clean
    parents, complete = parents_of(None, [part])
    assert [(each.uri, each.key) for each in parents] == [(str(tmp_path), clean.key)]
    assert complete
    added = FrozenObject(uri=f"{tmp_path}/more.jsonl", size=5, digest="x")
    assert not parents_of(None, [part, added])[1]
    assert parents_of(None, [FrozenObject(uri="/nowhere/a.jsonl", size=1, digest="x")]) == ([], False)


def test_a_rejected_record_tells_its_place_and_a_digest() -> None:
    record = Dialogue((Turn("user", "问"), Turn("assistant", "答")), Position("raw", "s3://raw/a", 3, 4))
    entry = rejected(record, "it is too short")
    assert entry.position.index == 3
    assert "问" not in entry.reason
    assert entry.sha256 == rejected(record, "another reason").sha256
