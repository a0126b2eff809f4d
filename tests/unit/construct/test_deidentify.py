"""De-identification: what is found, what it becomes, and a small form of the measurement."""

import hashlib
import logging
import pickle
import random

import pytest

from benchmarks.deidentification import measure, measured_surnames, plant
from benchmarks.name_carriers import fakers, from_phrases, phrases
from benchmarks.name_recall import Tally, wilson
from benchmarks.planted_identifiers import NAMES, STRUCTURED, Planter
from zhongjing.construct.deidentify.dates import read_date
from zhongjing.construct.deidentify.deidentifier import Deidentifier
from zhongjing.construct.deidentify.engine import Finder
from zhongjing.construct.deidentify.lexicon import load_lexicon, words
from zhongjing.construct.deidentify.likelihood import candidates, load_model, surnames_of
from zhongjing.construct.deidentify.numbers import is_bank_card, is_id_card, is_phone
from zhongjing.construct.deidentify.policy import Identifier, load_policy, parse_policy
from zhongjing.data.records import Dialogue, Position, Prompt, Ranking, TextRecord, Turn
from zhongjing.errors import ConfigError

PLACE = Position("source", "s3://b/a.jsonl", 0)


def dialogue(*texts: str) -> Dialogue:
    turns = (Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))
    return Dialogue(tuple(turns), PLACE)


@pytest.fixture(scope="module")
def deidentifier() -> Deidentifier:
    return Deidentifier()


def replaced(deidentifier: Deidentifier, *texts: str) -> list[str]:
    (record,) = deidentifier.apply(dialogue(*texts)).records
    assert isinstance(record, Dialogue)
    return [turn.content for turn in record.turns]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("我叫王小明，电话13812345678。", "我叫[患者姓名1]，电话[电话1]。"),
        ("手机：１３８－１２３４－５６７８", "手机：[电话1]"),
        ("打一三八一二三四五六七八", "打[电话1]"),
        ("座机(0371)66285999", "座机[电话1]"),
        ("+86 138 1234 5678 找我", "[电话1] 找我"),
        ("11010519491231002X", "[身份证号1]"),
        ("卡是 4111 1111 1111 1111", "卡是 [银行卡号1]"),
        ("银行卡号6222021234567890128", "银行卡号[银行卡号1]"),
        ("住院号：ZY20231234", "住院号：[病历号1]"),
        ("加我微信abc_12345", "加我微信[账号1]"),
        ("我的qq号是123456789", "我的qq号是[账号1]"),
        ("豫A12B34停在门口", "[车牌号1]停在门口"),
        ("见https://a.cn/x?y=1，谢谢", "见[网址1]，谢谢"),
        ("家住河南省郑州市金水区花园路12号3单元502室。", "家住[地址1]。"),
        ("在北京协和医院消化内科看过", "在[医院1]看过"),
        ("欧阳锋大夫您好", "[医生姓名1]大夫您好"),
        ("王女士您好", "[姓名1]女士您好"),
        ("我女儿唐凤珍发烧了", "我女儿[家属姓名1]发烧了"),
        ("请问刘建华的报告出来了吗", "请问[姓名1]的报告出来了吗"),
        ("下一位，赵秀兰请进", "下一位，[姓名1]请进"),
        ("今天李秀英的血糖又高了", "今天[姓名1]的血糖又高了"),
        ("姓王的那个大夫说没事", "姓[患者姓名1]的那个大夫说没事"),
        ("患者张某，女，54岁", "患者[姓名1]某，女，54岁"),
    ],
)
def test_what_is_found_becomes_its_placeholder(deidentifier: Deidentifier, text: str, clean: str) -> None:
    assert replaced(deidentifier, text) == [clean]


@pytest.mark.parametrize(
    "text",
    [
        "高血压患者能吃黄连素、金银花和何首乌吗？",
        "请咨询专业医生，去当地三甲医院的心内科。",
        "阿莫西林0.5g，每日3次，血压120/80，2019年做过手术。",
        "患者食欲不振，我是糖尿病，体温37.5，心率72次。",
        "谢谢医生，祝您健康，我妈妈高血压十年了。",
        "中医医生建议温水送服，主治医生说再观察3-5天。",
        "宝宝满月后发现有飞蚊症，中年女性，老公也在老家。",
        "建议还是和主治医生交流，那医生说没什么。",
        "和医生商量后再用药，双黄连口服液和安宫牛黄丸可以吗？",
    ],
)
def test_medical_words_and_figures_stay(deidentifier: Deidentifier, text: str) -> None:
    assert replaced(deidentifier, text) == [text]


def test_a_person_is_the_same_in_a_dialogue_also_by_surname_and_title(deidentifier: Deidentifier) -> None:
    first, second, third = replaced(
        deidentifier,
        "张医生您好，我叫李建国。",
        "李建国您好，张伟医生在门诊，王医生在病房。",
        "昨天李建国又疼了",
    )
    assert first == "[医生姓名1]医生您好，我叫[患者姓名1]。"
    assert second == "[患者姓名1]您好，[医生姓名1]医生在门诊，[医生姓名2]医生在病房。"
    assert third == "昨天[患者姓名1]又疼了"


def test_dates_become_distances_from_the_first_visit(deidentifier: Deidentifier) -> None:
    text = "我1990年3月5日出生，2023年5月1日就诊，5月4日复查，2023-04-30发病，二〇二三年七月住院。"
    assert replaced(deidentifier, text) == [
        "我[首日前33年]出生，[首日]就诊，[首日后3天]复查，[首日前1天]发病，[首日后2个月]住院。"
    ]


def test_dates_that_do_not_exist_are_read_all_the_same() -> None:
    read = read_date("2023年2月30日")
    assert read is not None
    assert read.on(2023).isoformat() == "2023-02-28"
    assert read_date("三月二十一日") is not None


def test_checks_by_their_publishers() -> None:
    # The example of GB 11643-1999, a test number of ISO/IEC 7812 issuers, and the plan of phonenumbers.
    assert is_id_card("11010519491231002X")
    assert not is_id_card("110105194912310021")
    assert is_bank_card("4111 1111 1111 1111")
    assert not is_bank_card("4111 1111 1111 1112")
    assert is_phone("13812345678")
    assert not is_phone("12012345678")


def test_every_kind_of_record_keeps_its_form(deidentifier: Deidentifier) -> None:
    turns = (Turn("user", "我叫王小明"),)
    ranking = Ranking(turns, ("王小明您好", "你好"), (0, 1), PLACE)
    (changed,) = deidentifier.apply(ranking).records
    assert changed == Ranking((Turn("user", "我叫[患者姓名1]"),), ("[患者姓名1]您好", "你好"), (0, 1), PLACE)
    assert deidentifier.apply(Prompt(turns, PLACE)).records == (
        Prompt((Turn("user", "我叫[患者姓名1]"),), PLACE),
    )
    text = TextRecord("姓名：王小明\n电话：13812345678", PLACE)
    assert deidentifier.apply(text).records == (TextRecord("姓名：[患者姓名1]\n电话：[电话1]", PLACE),)


def test_counts_and_review_hold_no_text_unless_asked(
    deidentifier: Deidentifier, caplog: pytest.LogCaptureFixture
) -> None:
    record = dialogue("我叫王小明，电话13812345678。", "王小明您好")
    with caplog.at_level(logging.DEBUG):
        outcome = deidentifier.apply(record)
    assert outcome.counts == {"touched": 1, "PATIENT_NAME": 2, "PHONE": 1}
    assert outcome.quarantined is None
    assert "王小明" not in caplog.text
    assert "13812345678" not in caplog.text
    assert [each.text for each in deidentifier.review(record)] == [None] * 3
    shown = deidentifier.review(record, with_text=True)
    assert [each.text for each in shown] == ["王小明", "13812345678", "王小明"]
    assert [record.turns[each.part].content[each.start : each.end] for each in shown] == [
        each.text for each in shown
    ]


def test_made_up_values_depend_on_salt_dialogue_and_text_alone() -> None:
    policy = load_policy()
    rules = {
        name: rule.model_copy(update={"action": "surrogate"}) if rule.action == "placeholder" else rule
        for name, rule in policy.classes.items()
    }
    policy = policy.model_copy(update={"classes": rules})
    texts = "我叫王小明，电话13812345678。", "王小明，打13812345678还是138 1234 5678？"
    step = Deidentifier(policy, salt="0123456789abcdef")
    first, second = replaced(step, *texts)
    name = first[2 : first.index("，")]
    assert name != "王小明"
    assert second.startswith(name)
    assert second.count(first[first.index("话") + 1 : -1]) == 2
    again = pickle.loads(pickle.dumps(step))
    assert replaced(again, *texts) == [first, second]
    assert replaced(step, texts[0] + "头疼", texts[1])[0] != first + "头疼"
    assert replaced(Deidentifier(policy, salt="f" * 16), *texts) != [first, second]
    assert "0123456789abcdef" not in str(step.parameters())
    assert step.parameters()["salt"] == hashlib.sha256(b"0123456789abcdef").hexdigest()
    with pytest.raises(ConfigError, match="salt"):
        Deidentifier(policy)


def test_what_the_policy_keeps_stays() -> None:
    policy = load_policy()
    rules = dict(policy.classes)
    for name, rule in rules.items():
        if name == "HOSPITAL":
            rules[name] = rule.model_copy(update={"action": "keep"})
    step = Deidentifier(policy.model_copy(update={"classes": rules}))
    assert replaced(step, "我叫王小明，在郑州市中医院看过") == ["我叫[患者姓名1]，在郑州市中医院看过"]


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        (
            "action: relative\n    label: 日期",
            "action: shift\n    label: 日期",
            "classes.DATE.action",
            "relative",
        ),
        ("  PLATE:", "  PLATES:", "classes.PLATES", "should be"),
        ("version: 1", "version: 2", "line 14: version", "should be 1"),
        ("    label: 医院\n", "", "classes.HOSPITAL.label", "required"),
        (
            "    label: 医院\n",
            "    labels: 医院\n    label: 医院\n",
            "classes.HOSPITAL.labels",
            "unknown key",
        ),
        ("label: 电话", "label: 电话1", "classes.PHONE.label", "pattern"),
        ("version: 1", "version: [1", "line", "not valid YAML"),
    ],
)
def test_errors_of_a_policy_name_line_and_field(old: str, new: str, where: str, message: str) -> None:
    from importlib import resources

    text = (
        resources.files("zhongjing.construct.deidentify").joinpath("policy.yaml").read_text(encoding="utf-8")
    )
    assert old in text
    with pytest.raises(ConfigError) as caught:
        parse_policy(text.replace(old, new, 1), "my.yaml")
    assert caught.value.where is not None
    assert caught.value.where.startswith("my.yaml, line ")
    assert where in caught.value.where
    assert message in caught.value.message


def test_names_where_no_word_announces_them_are_found() -> None:
    people = fakers(random.Random(3))
    carriers = ["最近总是头晕，睡眠也不好。请问怎么办？", "建议先测血压，低盐饮食。必要时去医院检查。"]
    finder = Finder(load_lexicon(), [each for each in Identifier if each.endswith("_NAME")])
    tally = Tally()
    for named in from_phrases(carriers, people, phrases("looked"), 2):
        tally.add(named, [(span.start, span.end) for span in finder.find(named.text)])
    # The benchmark has intervals and phrases that are held out.
    assert sum(tally.covered.values()) >= 0.88 * sum(tally.planted.values())
    assert tally.true >= 0.95 * tally.said


def test_the_model_is_the_same_for_a_text_whatever_stands_with_it() -> None:
    model, lexicon = load_model(), load_lexicon()
    surnames = surnames_of(lexicon, words("surnames"), model.statistics.ids)
    found = candidates("欧阳小明说小李和王阿姨来了", model.statistics, surnames)
    assert found is not None
    texts = {
        "欧阳小明说小李和王阿姨来了"[start:end] for start, end in zip(found.start, found.end, strict=True)
    }
    assert {"欧阳小明", "小李", "王"} <= texts
    beside, alone = model.probabilities(found)
    assert ((beside >= 0) & (beside <= 1) & (alone >= 0) & (alone <= 1)).all()
    for text in ("", "头", "😀", "王", "\ud800王小明"):
        candidates(text, model.statistics, surnames)


def test_other_weights_are_other_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Deidentifier().parameters()
    monkeypatch.setattr("zhongjing.construct.deidentify.deidentifier.model_digest", lambda: "other")
    assert Deidentifier().parameters() != before


def test_wilson_interval() -> None:
    # Brown, Cai and DasGupta 2001: bounded by 0 and 1, and not of no width at the ends.
    low, high = wilson(0, 20)
    assert low == pytest.approx(0, abs=1e-9)
    assert high == pytest.approx(0.1611, abs=1e-3)


def test_what_is_read_at_run_time_is_packed() -> None:
    import tomllib
    from fnmatch import fnmatch
    from importlib import resources
    from pathlib import Path

    root = Path(__file__).parents[3]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["zhongjing"]
    package = resources.files("zhongjing.construct.deidentify")
    names = ["policy.yaml", *(f"lists/{each.name}" for each in package.joinpath("lists").iterdir())]
    assert "lists/names.npz" in names
    for name in names:
        assert any(fnmatch(f"construct/deidentify/{name}", pattern) for pattern in patterns), name


def test_a_small_measurement_of_planted_identifiers() -> None:
    lexicon = load_lexicon()
    carriers = [
        dialogue("最近总是头晕，睡眠也不好，请问怎么办？", "建议您先测血压，低盐饮食，必要时去医院检查。"),
        dialogue("胃胀反酸两个月了。吃什么药好？", "可以口服奥美拉唑，避免辛辣食物，注意休息。"),
        dialogue("孩子咳嗽有痰，晚上重。", "多喝温水，观察体温，超过38.5度就诊。"),
    ]
    surnames = measured_surnames(lexicon)
    planted = list(plant(Planter(random.Random(5), surnames), carriers, 160))
    score = measure(Deidentifier(lexicon=lexicon), planted)
    assert score.recall(STRUCTURED) >= 0.995
    assert score.recall(NAMES) >= 0.9  # 160 names: the benchmark has the bar of 0.95 and thousands
    assert score.precision >= 0.9
