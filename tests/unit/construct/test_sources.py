"""What published items become: spans, wordings, seeds, and what is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tests.unit.construct import published_tasks as tasks
from zhongjing.config.sources import Kind
from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.construct.kg.relations import BACKWARD, FORWARD, Meaning
from zhongjing.construct.sources.catalog import LAYOUTS, SourceSettings, build
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.consultations import Consultations
from zhongjing.construct.sources.converter import Converted, Converter
from zhongjing.construct.sources.entities import Entities
from zhongjing.construct.sources.events import Events
from zhongjing.construct.sources.health_records import HealthRecords
from zhongjing.construct.sources.knowledge import Knowledge, items_of
from zhongjing.construct.sources.self_cognition import SelfCognition, items
from zhongjing.construct.sources.triples import Triples
from zhongjing.construct.sources.wordings import GROUP_OF
from zhongjing.data.json_values import json_members
from zhongjing.data.records import RejectedError, Row
from zhongjing.errors import ConfigError, DataError


def made(converter: Converter, item: dict[str, Any], seed: int = 0) -> Converted:
    return converter.convert(item, Choice(seed, json.dumps(item, ensure_ascii=False)))


def many(converter: Converter, item: dict[str, Any], count: int = 60) -> list[Converted]:
    return [made(converter, item, seed) for seed in range(count)]


@pytest.mark.parametrize("behind", [False, True])
def test_entities_are_asked_for_in_many_ways_and_answered_by_type(behind: bool) -> None:
    found = many(Entities(), tasks.cmeee(behind=behind))
    talks = {talk for each in found for talk in each.talks}
    assert len({talk.turns[0] for talk in talks}) > 20
    assert all(tasks.TEXT in talk.turns[0] for talk in talks)
    answers = {talk.turns[1] for talk in talks}
    assert "疾病：呼吸道感染\n临床表现：咳嗽\n医疗程序：胸片" in answers
    assert (
        json.dumps({"疾病": ["呼吸道感染"], "临床表现": ["咳嗽"], "医疗程序": ["胸片"]}, ensure_ascii=False)
        in answers
    )
    for talk in talks:  # no type is answered that was not asked for
        for line in talk.turns[1].splitlines():
            assert line.startswith("{") or line.split("：")[0] in talk.turns[0]
    assert made(Entities(), tasks.cmeee()) == made(Entities(), tasks.cmeee())


def test_an_item_without_entities_is_told_to_have_none() -> None:
    answers = {each.talks[0].turns[1] for each in many(Entities(), {"text": "今天复诊。", "entities": []})}
    assert answers > {"{}", "无。"}


def wrong_place() -> dict[str, Any]:
    item = tasks.cmeee()
    item["entities"][0]["start_idx"] += 1
    return item


def two_rules() -> dict[str, Any]:
    item = tasks.cmeee()
    item["entities"][0] = tasks.span(tasks.TEXT, "呼吸道感染", "dis", behind=True)
    return item


def elsewhere() -> dict[str, Any]:
    item = tasks.cmeie()
    item["spo_list"][0]["object"]["@value"] = "发热"
    return item


def label_short() -> dict[str, Any]:
    item = tasks.imcs()
    item["dialogue"][0]["BIO_label"] += " O"
    return item


def lone_inside() -> dict[str, Any]:
    item = tasks.imcs()
    item["dialogue"][0]["BIO_label"] = "I-Symptom O O O O O"
    return item


@pytest.mark.parametrize(
    ("converter", "item", "reason"),
    [
        (Entities(), wrong_place(), "the text at an entity's place is not the entity"),
        (Entities(), two_rules(), "the text at an entity's place is not the entity"),
        (Entities(), {"text": "咳嗽", "entities": [{"start_idx": 0, "end_idx": 1}]}, "entity has no"),
        (Entities(), {"text": "咳嗽"}, "no list of entities"),
        (Triples(), elsewhere(), "is not in the text"),
        (Triples(), {"text": " ", "spo_list": []}, "no text"),
        (Events(), {**tasks.cdee(), "event": [{"core_name": "疼痛", "tendency": "有"}]}, "tendency"),
        (Events(), {**tasks.cdee(), "event": [{"core_name": "疼痛", "character": "钝"}]}, "character"),
        (Consultations(("ner",)), label_short(), "as many labels as characters"),
        (Consultations(("ner",)), lone_inside(), "label"),
        (Consultations(("mrg",)), {**tasks.imcs(), "report": []}, "no report"),
        (HealthRecords(), {"姓名": "王小明", "主诉": "nan"}, "no field"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_without_its_text(
    converter: Converter, item: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RejectedError, match=reason) as refused:
        made(converter, item)
    assert not any(word in str(refused.value) for word in ("咳嗽", "王小明", "疼痛"))


def test_triples_are_written_as_lines_or_json_and_only_those_asked_for() -> None:
    talks = [each.talks[0] for each in many(Triples(), tasks.cmeie())]
    both = "（呼吸道感染，临床表现，咳嗽）\n（呼吸道感染，影像学检查，胸片）"
    answers = {talk.turns[1] for talk in talks}
    assert both in answers
    assert both.splitlines()[0] in answers
    rows = json.loads(next(answer for answer in answers if answer.startswith("[")))
    assert rows[0] == {"subject": "呼吸道感染", "predicate": "临床表现", "object": "咳嗽"}
    for talk in talks:
        if talk.turns[1] == both.splitlines()[0]:
            assert "临床表现" in talk.turns[0]
            assert "影像学检查" not in talk.turns[0]


def test_events_have_all_four_parts_and_standard_words_are_left_out() -> None:
    talk = made(Events(), tasks.cdee()).talks[0]
    assert talk.turns[1].splitlines() == [
        "主体词：疼痛；发生状态：肯定；描述词：持续性；解剖部位：右下腹",
        "主体词：发热；发生状态：否定；描述词：无；解剖部位：无",
    ]
    item = tasks.cdee()
    item["event"][0]["core_name"] = "腹痛NOS"
    assert made(Events(), item) == Converted(counts={"left out: core word is not in the text": 1})
    item["event"][0]["core_name"] = None
    assert "主体词：无" in made(Events(), item).talks[0].turns[1]


def test_a_consultation_becomes_three_tasks() -> None:
    found = made(Consultations(), tasks.imcs())
    assert found.counts == {"imcs-ner": 2, "imcs-sr": 2, "imcs-mrg": 2}
    assert len(found.talks) == 6
    answers = [talk.turns[1] for talk in found.talks]
    assert answers[2] == answers[3] == "咳嗽：有\n发热：没有"
    assert answers[4].startswith("主诉：咳嗽两天\n现病史：咳嗽\n")
    assert answers[4] != answers[5]
    assert found.talks[4].turns[0] != found.talks[5].turns[0]
    assert "患者自述：宝宝咳嗽两天，怎么办？\n医生：有没有发热？" in found.talks[4].turns[0]
    told = {talk.turns[1] for each in many(Consultations(("ner",)), tasks.imcs()) for talk in each.talks}
    assert "症状：咳嗽、发热\n药品名：妈咪爱" in told


def test_a_symptom_named_twice_is_the_one_that_is_there() -> None:
    item = tasks.imcs()
    sentence = item["dialogue"][1]
    del sentence["local_implicit_info"]
    sentence.update(symptom_norm=["咳嗽", "咳嗽", "发热", "发热"], symptom_type=["2", "1", "2", "0"])
    assert made(Consultations(("sr",)), item).talks[0].turns[1] == "咳嗽：有\n发热：没有"


def test_a_health_record_is_told_in_its_order_without_what_identifies() -> None:
    row = {
        "姓名": "王小明",
        "住院号": "0012",
        "诊断": "高血压",
        "主诉": "头晕3天",
        "现病史": "血压升高。",
        "备注": " ",
    }
    found = many(HealthRecords(), row)
    texts = {each.texts[0] for each in found}
    assert texts == {
        "主诉：头晕3天\n现病史：血压升高。\n诊断：高血压",
        "【主诉】头晕3天\n【现病史】血压升高。\n【诊断】高血压",
        "主诉\n头晕3天\n\n现病史\n血压升高。\n\n诊断\n高血压",
        "主诉：头晕3天。现病史：血压升高。诊断：高血压。",
    }
    assert found[0].counts == {"fields": 3, "identifying fields left out": 2}
    assert "头晕" not in made(HealthRecords(("诊断",)), row).texts[0]


@pytest.fixture
def graph() -> Graph:
    graph = Graph()
    for head, relation, tail in (
        ("肺炎", "临床表现", "咳嗽"),
        ("肺炎", "临床表现", "发热"),
        ("肺炎", "药物治疗", "阿莫西林"),
        ("肺炎", "别名", "肺部感染"),
        ("肺炎", "护理等级", "二级"),
        ("阿莫西林", "禁忌证", "青霉素过敏"),
        ("阿莫西林", "适应证", "肺炎"),
        ("布洛芬", "适应证", "溃疡"),
        ("布洛芬", "禁忌证", "溃疡"),
    ):
        graph.add(Triple(head, relation, tail))
    return graph


def test_a_text_tells_about_one_entity_from_both_ends_and_leaves_out_what_contradicts(graph: Graph) -> None:
    found = {str(item["name"]): item for item in items_of(graph)}
    assert "布洛芬" not in found
    texts = {each.texts[0] for each in many(Knowledge(), found["肺炎"])}
    assert len(texts) > 30
    for text in texts:
        assert all(
            word in text for word in ("肺炎", "肺部感染", "咳嗽", "发热", "阿莫西林", "护理等级", "二级")
        )
        assert "青霉素过敏" not in text
    drug = made(Knowledge(), found["阿莫西林"]).texts[0]
    assert drug.count("肺炎") == 1  # treated by it, and its indication: one fact
    assert {word for word in ("肺炎", "青霉素过敏") if word in drug} == {"肺炎", "青霉素过敏"}


def test_a_graph_as_dialogues_asks_only_what_the_entity_is_the_head_of(graph: Graph) -> None:
    found = {str(item["name"]): item for item in items_of(graph)}
    for each in many(Knowledge("dialogue"), found["肺炎"]):
        turns = each.talks[0].turns
        assert len(turns) in (2, 4, 6)
        assert all("肺炎" in turn for turn in turns)
    assert made(Knowledge("dialogue"), found["咳嗽"]).talks == ()


def test_every_relation_that_means_something_has_sentences() -> None:
    aliases = {name for name, meaning in FORWARD.items() if meaning is Meaning.ALIAS}
    untold = {*FORWARD, *BACKWARD} - aliases - set(GROUP_OF)
    assert untold <= {"narrower", "下位词"}
    assert all(len(group.sentences) > 1 and group.questions for group in GROUP_OF.values())


def test_self_cognition_has_questions_of_their_own_and_the_users_names() -> None:
    converter = SelfCognition("仲景", "某某团队")
    wanted = items(400, 7)
    talks = [made(converter, dict(item), 7).talks[0] for item in wanted]
    assert len({talk.turns[0] for talk in talks}) == 400
    assert items(400, 7) == wanted != items(400, 8)
    assert all("仲景" in talk.turns[1] or "某某团队" in talk.turns[1] for talk in talks)
    assert {len(talk.turns) for talk in talks} == {2, 4}
    assert SelfCognition.most() > 1000


def test_names_and_options_are_checked() -> None:
    for layout in LAYOUTS:
        if layout != "self-cognition":
            step, _ = build(SourceSettings(layout))
            expected = Kind.TEXT if layout in ("kg", "records") else Kind.DIALOGUE
            assert step.kind is expected
    for settings in (
        SourceSettings("cmeeee"),
        SourceSettings("self-cognition", model_name="仲景"),
        SourceSettings("self-cognition", model_name="仲景", author="某某", count=10**6),
        SourceSettings("cmeee", fields=("a",)),
        SourceSettings("cmeee", author="某某"),
    ):
        with pytest.raises(ConfigError):
            build(settings)


def test_members_of_one_object_are_read_one_by_one() -> None:
    rows = list(json_members(io.StringIO(' {"1": {"a": 1},\n "2": [2], "3": "x"}\n')))
    assert [(row.index, row.value) for row in rows if isinstance(row, Row)] == [
        (0, {"a": 1}),
        (1, [2]),
        (2, "x"),
    ]
    for text in ("[1]", '{"1": {"a": 1}', '{"1"}', "{1: 2}"):
        with pytest.raises(DataError):
            list(json_members(io.StringIO(text)))
