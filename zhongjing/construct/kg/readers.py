"""Reads knowledge graphs in the forms that they are published in.

=============  =============================================================================================
JSON, JSONL    triples as objects (head, relation, tail and their usual other names) or arrays of three;
               CMeIE's sentences with a ``spo_list`` (CBLUEbenchmark/CBLUE; CHIP-2020 task 2);
               CMeKG's objects of a ``中心词`` with a list for each relation (README of
               SCIR-HI/Huatuo-Llama-Med-Chinese; relations of king-yyf/CMeKG_tools, ``predicate.json``);
               disease objects with lists (``medical.json`` of liuhuanyong/QASystemOnMedicalKG, read by its
               ``build_medicalgraph.py``)
CSV, TSV       head, relation, tail, with a header or without; Neo4j's ``:START_ID``, ``:TYPE``, ``:END_ID``
               (Neo4j operations manual, CSV header format)
TTL, NT        RDF 1.1 Turtle; labels by rdfs:label or skos:prefLabel, aliases by skos:altLabel and
               owl:sameAs, types by rdf:type, is-a by rdfs:subClassOf and skos:broader (W3C)
TXT            names, one a line; the file's name is their type (``dict/`` of QASystemOnMedicalKG), and
               ``deny.txt`` has words of negation
=============  =============================================================================================

A row that cannot be read becomes a problem of the graph, with its place; a file of such rows is an error.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from zhongjing.codes import knowledge as codes
from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.construct.kg.turtle import read_rdf
from zhongjing.errors import DataError
from zhongjing.storage.listing import expand, is_local

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_HEAD = ("head", "subject", "h", "s", "头实体", "主体", "实体1", "entity1", "start", ":START_ID")
_RELATION = ("relation", "predicate", "r", "p", "关系", "谓词", "rel", "type", ":TYPE", "edge", "property")
_TAIL = ("tail", "object", "t", "o", "尾实体", "客体", "实体2", "entity2", "end", ":END_ID")
_HEAD_TYPE = ("head_type", "subject_type", "头实体类型", "主体类型", "start_type")
_TAIL_TYPE = ("tail_type", "object_type", "尾实体类型", "客体类型", "end_type")
_CENTRE = ("中心词", "中心实体", "entity")
_CENTRE_TYPE = ("类型", "类别", "class")

# Lists of QASystemOnMedicalKG's disease objects: the relation of its Neo4j graph, the type of what they hold.
_DISEASE_LISTS = {
    "symptom": ("has_symptom", "symptom"),
    "acompany": ("acompany_with", "disease"),
    "common_drug": ("common_drug", "drug"),
    "recommand_drug": ("recommand_drug", "drug"),
    "not_eat": ("no_eat", "food"),
    "do_eat": ("do_eat", "food"),
    "recommand_eat": ("recommand_eat", "food"),
    "check": ("need_check", "check"),
    "cure_department": ("belongs_to", "department"),
    "cure_way": ("cure_way", "treatment"),
}
_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".ttl", ".nt", ".txt"})


def read_graph(path: Path) -> Graph:
    """Reads a file, or all files of a folder that a graph may stand in, in order of their names.

    Raises:
        DataError: there is nothing to read, or a file cannot be read as a graph.
    """
    files = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES) if path.is_dir() else [path]
    try:
        return graph_of((each.name, each.read_bytes()) for each in files)
    except OSError as error:
        message = f"the graph's file cannot be read: {error.strerror}"
        raise DataError(message, code=codes.GRAPH_UNREADABLE, where=str(path)) from error


def load_graph(uri: str, store: ObjectStore | None = None) -> Graph:
    """Reads a graph from files of this machine or from objects of a store.

    Args:
        uri: a local path, or ``s3://``: a file, or a folder, of which all files are read that a graph may
            stand in; folders below it are left out.
        store: needed for s3://.

    Raises:
        DataError: there is nothing to read, or a file cannot be read as a graph.
        StorageError: the store cannot be read.
    """
    if is_local(uri):
        return read_graph(Path(expand(uri)))
    if not uri.startswith("s3://"):
        raise DataError("a graph is not read from this kind of URI", code=codes.GRAPH_UNREADABLE, where=uri)
    assert store is not None, "s3:// needs a store"
    infos = [] if uri.endswith("/") else store.glob(uri)
    if not infos:
        folder = uri.rstrip("/") + "/"
        infos = [each for each in store.list(folder) if "/" not in each.uri.removeprefix(folder)]
        infos = [each for each in infos if PurePosixPath(each.uri).suffix in _SUFFIXES]
    if not infos:
        raise DataError("no file that can hold a graph is there", code=codes.GRAPH_EMPTY, where=uri)
    return graph_of((PurePosixPath(each.uri).name, store.get(each.uri)) for each in infos)


def graph_of(files: Iterable[tuple[str, bytes]]) -> Graph:
    """Makes a graph of files, given by name and content; the name's ending says the form.

    Raises:
        DataError: no file has an entity, or one of them cannot be read as a graph.
    """
    graph = Graph()
    for name, content in files:
        _read(graph, name, content)
    if not len(graph):
        raise DataError("the graph has no entity", code=codes.GRAPH_EMPTY)
    return graph


def _read(graph: Graph, name: str, content: bytes) -> None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in (".ttl", ".nt"):
        read_rdf(graph, name, content, turtle=suffix == ".ttl")
        return
    text = _decoded(name, content)
    if suffix == ".txt":
        _read_names(graph, PurePosixPath(name).stem, text)
        return
    if suffix not in _SUFFIXES:
        raise DataError(
            "the form of this file is not known by its ending", code=codes.GRAPH_LAYOUT_UNKNOWN, where=name
        )
    rows = _table_rows(text, suffix) if suffix in (".csv", ".tsv") else _json_rows(graph, name, text)
    read = bad = 0
    for place, row in rows:
        where = f"{name} {place}"
        if _read_row(graph, row, where):
            read += 1
        else:
            bad += 1
            graph.add_bad_row(where, "the row has no head, relation and tail that are known")
    if bad and not read:
        raise DataError(f"none of {bad} rows has a known layout", code=codes.GRAPH_LAYOUT_UNKNOWN, where=name)


def _decoded(name: str, content: bytes) -> str:
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError("the file is neither UTF-8 nor GB18030", code=codes.GRAPH_UNREADABLE, where=name)


def _read_names(graph: Graph, kind: str, text: str) -> None:
    for line in text.splitlines():
        word = line.strip()
        if word and kind == "deny":
            graph.negations.add(word)
        elif word:
            graph.add_entity(word, kind)


def _json_rows(graph: Graph, name: str, text: str) -> Iterator[tuple[str, object]]:
    """Records of a JSON array, of one JSON object, or of JSON lines."""
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, list) and not _is_triple(whole):
        yield from ((f"record {number}", row) for number, row in enumerate(whole, 1))
        return
    if whole is not None:
        yield "record 1", whole
        return
    first_error: json.JSONDecodeError | None = None
    read = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            first_error = first_error or error
            graph.add_bad_row(f"{name} line {number}", f"no JSON: {error.msg} at column {error.colno}")
            continue
        read = True
        yield f"line {number}", row
    if first_error is not None and not read:
        raise DataError(f"no JSON: {first_error.msg}", code=codes.GRAPH_UNREADABLE, where=name)


def _table_rows(text: str, suffix: str) -> Iterator[tuple[str, object]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
    header: list[str] | None = None
    for number, cells in enumerate(reader, 1):
        row = [cell.strip() for cell in cells]
        if not any(row):
            continue
        if number == 1 and _first(dict.fromkeys(row, "x"), _HEAD) and _first(dict.fromkeys(row, "x"), _TAIL):
            header = row
            continue
        value: object = dict(zip(header, row, strict=False)) if header else row
        yield f"line {reader.line_num}", value


def _is_triple(row: object) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(isinstance(each, str) for each in row)


def _read_row(graph: Graph, row: object, place: str) -> bool:
    """Reads one row into the graph; False where its layout is not known."""
    if isinstance(row, list):
        texts = [each.strip() for each in row if isinstance(each, str)]
        if len(texts) != 3 or len(row) != 3 or not all(texts):
            return False
        graph.add(Triple(texts[0], texts[1], texts[2], place=place))
        return True
    if not isinstance(row, Mapping):
        return False
    spo = row.get("spo_list", row.get("triples"))
    if isinstance(spo, list):
        read = [_read_row(graph, each, place) for each in spo]
        return all(read)
    centre = _first(row, _CENTRE)
    if centre and not _first(row, _RELATION):
        return _read_centre(graph, row, centre, place)
    name = row.get("name")
    if isinstance(name, str) and name.strip():
        return _read_disease(graph, row, name.strip(), place)
    return _read_object(graph, row, place)


def _read_object(graph: Graph, row: Mapping[str, object], place: str) -> bool:
    head, relation, tail = (_first(row, names) for names in (_HEAD, _RELATION, _TAIL))
    if not (head and relation and tail):
        return False
    used = {*_HEAD, *_RELATION, *_TAIL, *_HEAD_TYPE, *_TAIL_TYPE, "attributes", "Combined", "text"}
    attributes = {
        key: text for key, value in row.items() if key not in used and (text := _text(value)) is not None
    }
    given = row.get("attributes")
    if isinstance(given, Mapping):
        attributes |= {str(key): text for key, value in given.items() if (text := _text(value)) is not None}
    graph.add(Triple(head, relation, tail, attributes, place))
    for end, names in ((head, _HEAD_TYPE), (tail, _TAIL_TYPE)):
        kind = _first(row, names)
        if kind and (end == head or graph.entity(tail) is not None):
            graph.add_entity(end, kind)
    return True


def _read_centre(graph: Graph, row: Mapping[str, object], centre: str, place: str) -> bool:
    graph.add_entity(centre, _first(row, _CENTRE_TYPE))
    for relation, value in row.items():
        if relation not in (*_CENTRE, *_CENTRE_TYPE):
            for tail in _texts(value):
                graph.add(Triple(centre, relation, tail, place=place))
    return True


def _read_disease(graph: Graph, row: Mapping[str, object], name: str, place: str) -> bool:
    lists = [key for key in _DISEASE_LISTS if key in row]
    if not lists and not {"desc", "cause", "alias"} & row.keys():
        return False
    graph.add_entity(name, "disease")
    for alias in _texts(row.get("alias")):
        graph.add_alias(name, alias, place)
    for key in lists:
        relation, kind = _DISEASE_LISTS[key]
        for tail in _texts(row[key]):
            graph.add_entity(tail, kind)
            graph.add(Triple(name, relation, tail, place=place))
    return True


def _first(row: Mapping[str, object], names: Iterable[str]) -> str | None:
    """The first of these fields that has a text; CMeIE wraps texts as ``{"@value": text}``."""
    for name in names:
        text = _text(row.get(name))
        if text:
            return text
    return None


def _text(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("@value")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for each in values if (text := _text(each)) is not None]
