from __future__ import annotations

import random

from tests.unit.construct.graphs import MEDICAL_KG, graph, needs_medical_kg
from zhongjing.construct.kg.graph import Graph
from zhongjing.construct.kg.linker import Linker, fold
from zhongjing.construct.kg.readers import read_graph


def names(*given: str) -> Graph:
    made = Graph()
    for name in given:
        made.add_entity(name)
    return made


def found(linker: Linker, text: str) -> list[tuple[str, str]]:
    """What is found: the text's own words, and the name."""
    return [(text[each.start : each.end], "/".join(each.names)) for each in linker.find(text)]


def test_the_longest_name_and_none_within_it() -> None:
    linker = Linker(names("糖尿病", "糖尿病足", "足癣", "高血压"))
    assert found(linker, "糖尿病足癣和高血压") == [("糖尿病足", "糖尿病足"), ("高血压", "高血压")]


def test_width_case_and_script_are_one() -> None:
    linker = Linker(names("头孢克肟", "维生素D", "CT检查"))
    text = "頭孢克肟、維生素Ｄ，做ｃｔ檢查"
    assert [name for _, name in found(linker, text)] == ["头孢克肟", "维生素D", "CT检查"]
    assert [words for words, _ in found(linker, text)] == ["頭孢克肟", "維生素Ｄ", "ｃｔ檢查"]


def test_a_traditional_name_meets_simplified_text() -> None:
    assert found(Linker(names("頭孢克肟")), "头孢克肟") == [("头孢克肟", "頭孢克肟")]


def test_aliases_lead_to_their_name_and_shared_ones_to_all() -> None:
    linker = Linker(graph(("布洛芬", "别名", "退热片"), ("对乙酰氨基酚", "别名", "退热片")))
    assert found(linker, "吃退热片") == [("退热片", "布洛芬/对乙酰氨基酚")]


def test_latin_names_and_numbers_stand_alone() -> None:
    linker = Linker(names("ALT", "维生素B1", "21"))
    assert found(linker, "salt 与 ALT，维生素B12 与维生素B1片，21号") == [
        ("ALT", "ALT"),
        ("维生素B1", "维生素B1"),
    ]


def test_places_hold_beyond_the_basic_plane() -> None:
    linker = Linker(names("𠮷野病", "糖尿病"))
    assert found(linker, "😀糖尿病😀😀𠮷野病，糖尿病") == [
        ("糖尿病", "糖尿病"),
        ("𠮷野病", "𠮷野病"),
        ("糖尿病", "糖尿病"),
    ]


def test_folding_keeps_every_place() -> None:
    text = "".join(map(chr, range(0x20, 0xD800))) + "".join(map(chr, range(0xE000, 0x20000)))
    assert len(fold(text)) == len(text)
    assert fold(fold(text)) == fold(text)


def test_only_types_that_are_asked_for() -> None:
    made = names("布洛芬")
    made.add_entity("头痛", "symptom")
    assert found(Linker(made, types={"symptom"}), "头痛吃布洛芬") == [("头痛", "头痛")]
    assert Linker(Graph()).find("头痛") == []


@needs_medical_kg
def test_all_published_names_are_found_as_a_search_for_each_would() -> None:
    """Beside ``str.find`` of every name: what the linker leaves out lies in or over a longer one."""
    linker = Linker(read_graph(MEDICAL_KG))
    rng = random.Random(0)
    listed = [line.strip() for path in ("drug.txt", "disease.txt") for line in _lines(path)]
    sample = rng.sample([name for name in listed if len(name) > 2 and any(map(str.isalpha, name))], 300)
    text = "，".join(sample)
    spans = [(each.start, each.end) for each in linker.find(text)]
    folded = fold(text)
    for name in sample:
        start = folded.find(fold(name))
        while start >= 0:
            end = start + len(name)
            over = [(a, b) for a, b in spans if a < end and start < b]
            assert any(b - a >= len(name) for a, b in over) or _within_word(folded, start, end), name
            start = folded.find(fold(name), end)


def _within_word(text: str, start: int, end: int) -> bool:
    around = (text[start - 1 : start + 1], text[end - 1 : end + 1])
    return any(len(pair) == 2 and pair.isascii() and pair.isalnum() for pair in around)


def _lines(name: str) -> list[str]:
    return (MEDICAL_KG / name).read_text(encoding="utf-8").splitlines()
