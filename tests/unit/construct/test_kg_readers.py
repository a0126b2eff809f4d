"""Graphs in the forms that others publish: the layouts are of the sources that the reader names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.construct.graphs import MEDICAL_KG, needs_medical_kg
from zhongjing.codes import Code
from zhongjing.codes import knowledge as codes
from zhongjing.construct.kg.graph import Graph
from zhongjing.construct.kg.readers import graph_of, load_graph, read_graph
from zhongjing.construct.kg.relations import Meaning
from zhongjing.errors import DataError
from zhongjing.storage.objects import ObjectStore


def graph(name: str, text: str) -> Graph:
    return graph_of([(name, text.encode())])


def lines(*rows: object) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


# One statement in every form: (高血压, 药物治疗, 氨氯地平), read as that the medicine treats the condition.
CMEIE = {
    "text": "高血压@首选氨氯地平。",
    "spo_list": [
        {
            "Combined": False,
            "predicate": "药物治疗",
            "subject": "高血压",
            "subject_type": "疾病",
            "object": {"@value": "氨氯地平"},
            "object_type": {"@value": "药物"},
        }
    ],
}
TURTLE = """
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix kg: <http://example.org/kg/> .
kg:d1 a kg:Disease ; rdfs:label "Hypertension"@en , "高血压"@zh ; skos:altLabel "血压高" ; kg:treated kg:m1 .
kg:m1 rdfs:label "氨氯地平"@zh .
kg:treated rdfs:label "药物治疗"@zh .
"""
FORMS = {
    "triples.jsonl": lines({"head": "高血压", "relation": "药物治疗", "tail": "氨氯地平"}),
    "array.json": lines([["高血压", "药物治疗", "氨氯地平"]]),
    "objects.json": lines([{"subject": "高血压", "predicate": "药物治疗", "object": "氨氯地平"}]),
    "cmeie.jsonl": lines(CMEIE),
    "centre.json": lines({"中心词": "高血压", "药物治疗": ["氨氯地平"], "所属科室": ["内科"]}),
    "medical.json": lines({"name": "高血压", "desc": "", "common_drug": ["氨氯地平"], "not_eat": ["咸菜"]}),
    "kg.csv": "head,relation,tail\n高血压,药物治疗,氨氯地平\n",
    "bare.csv": "高血压,药物治疗,氨氯地平\n",
    "bare.tsv": "高血压\t药物治疗\t氨氯地平\n",
    "neo4j.csv": ":START_ID,:END_ID,:TYPE\n高血压,氨氯地平,药物治疗\n",
    "kg.ttl": TURTLE,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(name: str) -> None:
    read = graph(name, FORMS[name])
    (found,) = read.meant(Meaning.TREATS, "氨氯地平")["高血压"]
    assert found.head == "高血压"
    assert found.place.startswith(name)
    assert not read.problems()


def test_types_and_aliases_are_read() -> None:
    turtle = graph("kg.ttl", TURTLE).entity("高血压")
    assert turtle is not None
    assert turtle.types == ("Disease",)
    assert set(turtle.aliases) == {"血压高", "Hypertension"}
    cmeie = graph("cmeie.jsonl", lines(CMEIE)).entity("氨氯地平")
    assert cmeie is not None
    assert cmeie.types == ("药物",)
    disease = graph("medical.json", FORMS["medical.json"])
    assert disease.meant(Meaning.CONTRAINDICATED, "咸菜").keys() == {"高血压"}


def test_attributes_of_a_statement_stay() -> None:
    row = {"head": "布洛芬", "relation": "用法用量", "tail": "口服", "attributes": {"high": 0.4, "unit": "g"}}
    (found,) = graph("kg.json", lines(row)).triples
    assert found.attributes == {"high": "0.4", "unit": "g"}


def test_a_gb18030_table_is_read() -> None:
    read = graph_of([("kg.csv", "头实体,关系,尾实体\n高血压,药物治疗,氨氯地平\n".encode("gb18030"))])
    assert read.triples[0].tail == "氨氯地平"


def test_lists_of_names_and_of_negations() -> None:
    read = graph_of([("drug.txt", "布洛芬\n\n阿司匹林\n".encode()), ("deny.txt", "没有\n".encode())])
    assert [entity.types for entity in read.entities()] == [("drug",), ("drug",)]
    assert read.negations == {"没有"}


def test_bad_rows_are_told_with_their_places() -> None:
    read = graph("kg.csv", "head,relation,tail\n高血压,药物治疗,氨氯地平\n高血压,药物治疗\n")
    (problem,) = read.problems()
    assert (problem.kind, problem.places) == ("bad-row", ("kg.csv line 3",))
    read = graph("kg.jsonl", '{"head": "a1", "relation": "is_a", "tail": "b1"}\n{"head":\n')
    (problem,) = read.problems()
    assert (problem.kind, problem.places) == ("bad-row", ("kg.jsonl line 2",))


BAD: Mapping[str, tuple[bytes, Code]] = {
    "kg.jsonl": (b'{"head":\n', codes.GRAPH_UNREADABLE),
    "kg.json": (b'[{"question": "q"}]', codes.GRAPH_LAYOUT_UNKNOWN),
    "kg.ttl": (b"<a> <b> .", codes.GRAPH_UNREADABLE),
    "kg.csv": (b"\xff\xff\xff", codes.GRAPH_UNREADABLE),
    "kg.xlsx": (b"PK", codes.GRAPH_LAYOUT_UNKNOWN),
    "drug.txt": (b"\n", codes.GRAPH_EMPTY),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_graph_is_an_error_with_its_code(name: str) -> None:
    content, code = BAD[name]
    with pytest.raises(DataError) as caught:
        graph_of([(name, content)])
    assert caught.value.code is code


@needs_medical_kg
def test_the_published_lists_are_read_whole() -> None:
    read = read_graph(MEDICAL_KG)
    kinds = {kind for entity in read.entities() for kind in entity.types}
    assert kinds == {"check", "department", "disease", "drug", "food", "producer", "symptom"}
    assert len(read) > 40_000
    assert "没有" in read.negations


def test_a_graph_is_read_from_s3_as_from_files(store: ObjectStore, bucket_uri: str, tmp_path: Path) -> None:
    rows = {
        "cmekg.json": '[{"head": "布洛芬", "relation": "禁忌", "tail": "胃溃疡"}]',
        "more.csv": "head,relation,tail\n布洛芬,适应症,头痛症\n",
        "own.ttl": '<http://x/a> <http://www.w3.org/2000/01/rdf-schema#label> "甲"@zh .',
        "README.md": "about",
    }
    for name, text in rows.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        store.put(f"{bucket_uri}/kg/{name}", text.encode())
    store.put(f"{bucket_uri}/kg/older/a.json", b"[]")
    here = read_graph(tmp_path)
    for uri in (f"{bucket_uri}/kg", f"{bucket_uri}/kg/", str(tmp_path)):
        found = load_graph(uri, store)
        assert found.triples == here.triples
        assert len(found) == len(here) == 4
    (one,) = load_graph(f"{bucket_uri}/kg/more.csv", store).triples
    assert one.place == "more.csv line 2"
    for uri in (f"{bucket_uri}/none", str(tmp_path / "none"), "hf://datasets/a/b"):
        with pytest.raises(DataError) as caught:
            load_graph(uri, store)
        assert caught.value.where == uri
