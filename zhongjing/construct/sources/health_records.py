"""Health records, rows with named fields (主诉, 现病史, 诊断, ...), as text for pretraining."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from zhongjing.config.sources import Kind
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.converter import Converted, Item, joined
from zhongjing.data.records import RejectedError

USUAL_ORDER = (
    "科室",
    "性别",
    "年龄",
    "主诉",
    "现病史",
    "既往史",
    "个人史",
    "婚育史",
    "月经史",
    "家族史",
    "过敏史",
    "体格检查",
    "专科检查",
    "辅助检查",
    "检查",
    "检查所见",
    "初步诊断",
    "诊断",
    "诊断依据",
    "鉴别诊断",
    "诊疗经过",
    "治疗",
    "处理",
    "医嘱",
    "出院诊断",
    "出院情况",
    "出院医嘱",
    "建议",
)
"""Order of a case history; other fields come behind, in the order of the row."""
IDENTIFYING = frozenset(
    {
        "id",
        "姓名",
        "患者姓名",
        "病人姓名",
        "患者",
        "医生",
        "医师",
        "主治医师",
        "签名",
        "身份证",
        "身份证号",
        "证件号",
        "电话",
        "联系电话",
        "手机",
        "手机号",
        "住址",
        "地址",
        "家庭住址",
        "单位",
        "工作单位",
        "病历号",
        "住院号",
        "门诊号",
        "就诊卡号",
        "病案号",
        "床号",
        "医保号",
        "联系人",
        "出生日期",
        "患者id",
        "patient_id",
        "name",
        "phone",
        "address",
    }
)
"""Fields that are never told, by their names. What stands inside other fields is de-identification's."""
_EMPTY = frozenset({"", "nan", "none", "null", "-", "--", "/", "无记录"})


class HealthRecords:
    """Rows become texts, in one of four ways of writing.

    Args:
        fields: only these, in this order; none: all but identifying ones.
    """

    kind = Kind.TEXT
    members = False

    def __init__(self, fields: Sequence[str] = ()) -> None:
        self.fields = tuple(fields)

    def parameters(self) -> dict[str, object]:  # noqa: D102
        return {"fields": list(self.fields)}

    def convert(self, item: Item, choice: Choice) -> Converted:  # noqa: D102
        told = list(self._told(item))
        if not told:
            raise RejectedError("the record has no field with a text")
        way = choice.number("way", 4)
        if way == 0:
            text = "\n".join(f"{name}：{value}" for name, value in told)
        elif way == 1:
            text = "\n".join(f"【{name}】{value}" for name, value in told)
        elif way == 2:
            text = "\n\n".join(f"{name}\n{value}" for name, value in told)
        else:
            text = "".join(
                f"{name}：{value}{'' if value[-1] in '。！？；' else '。'}" for name, value in told
            )
        hidden = sum(1 for name in item if _folded(name) in IDENTIFYING and name not in self.fields)
        return Converted(texts=(text,), counts={"fields": len(told), "identifying fields left out": hidden})

    def _told(self, item: Item) -> Iterator[tuple[str, str]]:
        rank = {name: place for place, name in enumerate(USUAL_ORDER)}
        usual = sorted(item, key=lambda name: rank.get(str(name).strip(), len(rank)))  # stable
        for name in self.fields or usual:
            if not self.fields and _folded(name) in IDENTIFYING:
                continue
            value = _text(item.get(name))
            if value.lower() not in _EMPTY:
                yield str(name).strip(), value


def _folded(name: object) -> str:
    return str(name).strip().lower()


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return "；".join(f"{name}：{_text(each)}" for name, each in value.items())
    if isinstance(value, list):
        return joined([_text(each) for each in value])
    return "" if value is None or isinstance(value, bool) else str(value).strip()
