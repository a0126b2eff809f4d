"""What a patient asks for, told by words of the question: scenarios of a corpus, at a glance.

The paper counts "over 10 medical Q&A scenarios, such as disease diagnosis, medication advice, health
consultation, medical knowledge" (section 3) without a list. These are the intents of CBLUE's KUAKE-QIC
(README_ZH.md of CBLUEbenchmark/CBLUE: 病情诊断, 病因分析, ..., 其他), with medication beside them. The
rules are a rule of thumb, good for seeing what a corpus lacks; no labelled set was at hand to measure them.
"""

from __future__ import annotations

import re

from zhongjing.data.records import Turns

OTHER = "其他"
# In this order: the first that fits. What is asked for stands more often at a question's end.
_RULES: tuple[tuple[str, str], ...] = (
    ("医疗费用", r"多少钱|费用|价格|贵不贵|花费|报销|医保"),
    (
        "用药建议",
        r"[吃用服]什么[^，。？]{0,3}药|什么药|哪[些种]药|用药|停药|药[^，。？]{0,8}(怎么吃|怎么用|副作用|一起)"
        r"|(能|可以)[^，。？]{0,4}[吃用服][^，。？]{0,10}(药|片|胶囊|颗粒|丸|素|口服液)|剂量|吃[几多]片",
    ),
    (
        "指标解读",
        r"化验单|报告单|检查结果|指标|参考值|正常值|偏[高低]|[阴阳]性[^，。？]{0,4}(什么|说明|正常|怎)",
    ),
    (
        "就医建议",
        r"挂[什哪][么个]?科|[看去]哪[个些]?[家科]|哪[家个里][^，。？]{0,6}(医院|医生|专家)|什么科"
        r"|做[什哪][么些]检查|检查什么",
    ),
    ("功效作用", r"功效|作用(是|有|和)|有什么(用|作用|好处)|疗效"),
    (
        "注意事项",
        r"注意(什么|些|哪|事项)|忌口|禁忌|饮食|(能|可以|不能|适合|应该)[^，。？]{0,3}[吃喝][^，。？]{0,8}[吗么？?]"
        r"|吃什么(好|比较|食物|水果|东西)|怎么(护理|调养|调理|预防|保养)|预防",
    ),
    (
        "病因分析",
        r"为什么|为何|什么原因|原因(是|有|导致)|怎么(引起|回事|得的|形成)|引起的[吗？?]|病因|咋回事",
    ),
    (
        "治疗方案",
        r"怎[么样]?(治|办|处理|缓解|消除|去除|恢复|改善)|如何(治|处理|缓解|消除|改善)|治疗|治[好愈]|咋办|手术"
        r"|办法|疗法",
    ),
    (
        "后果表述",
        r"后果|危害|遗传|传染|复发|癌变|后遗症|严重吗|要紧|有(什么)?影响|会不会|会[^，。？]{1,10}吗|生存|寿命",
    ),
    (
        "病情诊断",
        r"是不是|是否|什么病|得了什么|(是|算)[^，。？]{0,12}吗|怀孕了?吗|诊断|症状|表现|正常吗|有问题",
    ),
    ("疾病表述", r"什么(是|叫)|是什么|什么意思|介绍|概念|定义|分类|几种"),
)
SCENARIOS = tuple(name for name, _ in _RULES)
_COMPILED = tuple((name, re.compile(rule)) for name, rule in _RULES)


def scenario_of(turns: Turns) -> str:
    """The scenario of a dialogue, by its opening question; what no rule fits is 其他."""
    asked = next((turn.content for turn in turns if turn.role == "user"), "")
    return next((name for name, rule in _COMPILED if rule.search(asked)), OTHER)
