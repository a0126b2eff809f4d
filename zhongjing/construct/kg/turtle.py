"""Reads RDF (Turtle, N-Triples) into a graph, by pyoxigraph.

Labels, aliases and kinds follow RDF Schema and SKOS (W3C). A node without a label
is named by the last part of its IRI.
"""

from __future__ import annotations

from urllib.parse import unquote

import pyoxigraph
from pyoxigraph import BlankNode, Literal, NamedNode, RdfFormat

from zhongjing.codes import knowledge as codes
from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.errors import DataError

_RDFS = "http://www.w3.org/2000/01/rdf-schema#"
_SKOS = "http://www.w3.org/2004/02/skos/core#"
_LABELS = (_SKOS + "prefLabel", _RDFS + "label")
_TYPE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type"


def read_rdf(graph: Graph, name: str, content: bytes, *, turtle: bool) -> None:
    """Adds the statements of an RDF document to the graph.

    Raises:
        DataError: it is no such document; names the line.
    """
    form = RdfFormat.TURTLE if turtle else RdfFormat.N_TRIPLES
    try:
        quads = list(pyoxigraph.parse(content, format=form))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{name} line {line}" if line else name
        message = "the file is no Turtle" if turtle else "the file is no N-Triples"
        raise DataError(message, code=codes.GRAPH_UNREADABLE, where=where) from error
    labels: dict[str, str] = {}
    for predicate in reversed(_LABELS):  # what SKOS prefers comes last and stays
        foreign: dict[str, str] = {}
        for quad in quads:
            if quad.predicate.value == predicate and isinstance(quad.object, Literal):
                language = quad.object.language or "zh"
                chosen = labels if language.startswith("zh") else foreign
                chosen[_key(quad.subject)] = quad.object.value
        labels = foreign | labels

    def text(node: object) -> str:
        if isinstance(node, Literal):
            return node.value
        return labels.get(_key(node)) or _local(_key(node))

    for number, quad in enumerate(quads, 1):
        predicate = quad.predicate.value
        head, tail = text(quad.subject), text(quad.object)
        if predicate in _LABELS:
            if tail != head:
                graph.add_alias(head, tail, f"{name} statement {number}")
            graph.add_entity(head)
        elif predicate == _TYPE:
            graph.add_entity(head, tail)
        else:
            graph.add(Triple(head, text(quad.predicate), tail, place=f"{name} statement {number}"))


def _key(node: object) -> str:
    return node.value if isinstance(node, NamedNode | BlankNode) else str(node)


def _local(iri: str) -> str:
    """The last part of an IRI, decoded."""
    return unquote(iri.rstrip("/#").replace("#", "/").rsplit("/", 1)[-1])
