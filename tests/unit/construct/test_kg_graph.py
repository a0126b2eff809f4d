from __future__ import annotations

from tests.unit.construct.graphs import example_graph, graph
from zhongjing.construct.kg.relations import Meaning
from zhongjing.data.example.facts import FACTS


def test_opposite_statements_are_told_and_not_judged_by() -> None:
    read = graph(
        ("阿司匹林", "适应症", "冠心病"), ("阿司匹林", "禁忌", "冠心病"), ("阿司匹林", "禁忌", "血友病")
    )
    (problem,) = read.problems()
    assert (problem.kind, problem.places) == ("conflict", ("line 1", "line 2"))
    assert "(阿司匹林, 适应症, 冠心病), (阿司匹林, 禁忌, 冠心病)" in problem.message
    assert [read.conflicting(triple) for triple in read.triples] == [True, True, False]


def test_a_food_that_suits_and_does_not() -> None:
    read = graph(("痛风", "do_eat", "豆腐"), ("痛风", "not_eat", "豆腐"))
    assert [problem.kind for problem in read.problems()] == ["conflict"]


def test_cycles_of_is_a_are_told_with_their_places_and_end() -> None:
    read = graph(("甲病", "is_a", "乙病"), ("乙病", "is_a", "丙病"), ("丙病", "is_a", "甲病"))
    (problem,) = read.problems()
    assert (problem.kind, problem.places) == ("is-a-cycle", ("line 1", "line 2", "line 3"))
    assert read.wider("甲病") == {"甲病", "乙病", "丙病"}
    (own,) = graph(("甲病", "is_a", "甲病")).problems()
    assert own.places == ("line 1",)


def test_a_long_chain_needs_no_recursion() -> None:
    read = graph(*((f"病{n}", "is_a", f"病{n + 1}") for n in range(5000)))
    assert len(read.wider("病0")) == 5001
    assert not read.problems()


def test_an_alias_of_two_names_is_told() -> None:
    read = graph(("对乙酰氨基酚", "别名", "退热片"), ("布洛芬", "别名", "退热片"))
    (problem,) = read.problems()
    assert (problem.kind, problem.places) == ("ambiguous-alias", ("line 1", "line 2"))


def test_cycles_of_aliases_are_told_once() -> None:
    read = graph(("甲病", "别名", "乙病"), ("乙病", "别名", "丙病"), ("丙病", "别名", "甲病"))
    (problem,) = [each for each in read.problems() if each.kind == "alias-cycle"]
    assert problem.places == ("line 1", "line 2", "line 3")
    assert problem.message.count("甲病") == 2


def test_equal_statements_are_one() -> None:
    assert len(graph(("头痛", "药物治疗", "布洛芬"), ("头痛", "药物治疗", "布洛芬")).triples) == 1


def test_the_examples_graph_is_in_order() -> None:
    read = example_graph()
    assert not read.problems()
    medicines = [entity for entity in read.entities() if "药物" in entity.types]
    assert len(medicines) == len(FACTS)
    for medicine in medicines:
        for kind in (Meaning.TREATS, Meaning.CONTRAINDICATED, Meaning.INTERACTS, Meaning.USAGE):
            assert read.meant(kind, medicine.name), (medicine.name, kind)
