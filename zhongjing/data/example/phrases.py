"""Sentence patterns of the example data, in Chinese. Slots are fields of a :class:`Fact`.

``{d}`` disease, ``{p}`` department, ``{a} {b} {c}`` symptoms, ``{m}`` medicine, ``{t}`` check (test),
``{n}`` caution, ``{w}`` another condition's medicine.
"""

from __future__ import annotations

NOTICE = "本文件由程序按一张虚构的简表自动生成，仅用于软件测试，内容为合成数据，不构成任何医疗建议。"

# One sentence each; a paragraph of the textbook takes a few of one condition.
TEXTBOOK = (
    "{d}常用{m}治疗。",
    "治疗{d}首选{m}。",
    "{d}的首选药物是{m}。",
    "对于{d}，一般服用{m}。",
    "{m}用于治疗{d}。",
    "{m}是{d}的常用药。",
    "医生多给{d}病人开{m}。",
    "{d}可以用{m}。",
    "{d}属于{p}的疾病。",
    "{d}病人应到{p}就诊。",
    "得了{d}，建议到{p}看病。",
    "{p}常见{d}。",
    "{d}的典型症状是{a}、{b}、{c}。",
    "{d}病人常有{b}、{a}。",
    "出现{a}、{c}，应想到{d}。",
    "{c}、{b}多见于{d}。",
    "{a}、{b}、{c}，考虑{d}，可用{m}。",
    "确诊{d}要做{t}。",
    "怀疑{d}时先查{t}。",
    "{d}病人平时要注意：{n}。",
    "{d}的护理要点是{n}。",
    "问：{d}用什么药？答：{m}。",
    "问：{d}看哪个科？答：{p}。",
    "问：{d}吃什么药好？答：可以用{m}，到{p}就诊。",
)

# Exercises: two verdicts on a condition's medicine.
RIGHT = "{d}用{m}？对。"
WRONG = "{d}用{w}？错。"

# Questions that name the condition, and questions that describe it.
QUESTIONS_NAMED = (
    "{d}吃什么药？",
    "我得了{d}，用什么药好？",
    "医生，{d}怎么治？",
    "请问{d}该用哪种药？",
    "查出{d}，该怎么办？",
    "家里老人有{d}，开什么药？",
)
QUESTIONS_SYMPTOMS = (
    "我{a}、{b}，吃什么药？",
    "医生，最近{a}，还有{c}，怎么办？",
    "请问{b}、{c}是什么病，怎么治？",
)

# The right answer's core, after a question that names the condition and after one that describes it.
CORES_NAMED = (
    "{d}常用{m}",
    "{d}可以用{m}",
    "{d}首选{m}",
    "得了{d}，一般服用{m}",
)
CORES_SYMPTOMS = (
    "考虑{d}，可以用{m}",
    "多半是{d}，常用{m}",
    "应想到{d}，首选{m}",
)
EXTRAS = (
    "，到{p}就诊",
    "，先查{t}",
    "，平时{n}",
)

OPENINGS_WARM = ("您好，别担心，", "您好，理解您的心情，", "您好，请放心，", "您好，很高兴帮您，")
CLOSINGS_WARM = ("祝您早日康复！", "有问题随时问我。", "多保重身体。", "愿您一切顺利！")
OPENINGS_COLD = ("", "", "看过了，", "行，")
CLOSINGS_COLD = ("", "", "就这样。", "自己看着办。")
INQUIRIES = (
    "请问这样多久了？",
    "还有别的不舒服吗？",
    "对什么药过敏吗？",
    "以前得过什么病吗？",
    "现在还在吃别的药吗？",
)
# Much the same words in the safe and in the harmful sentence: only their order and a negation differ.
SAFE = (
    "请按医嘱用药，不要自行加倍。",
    "药不要和酒同服，不要自行停药。",
    "不见好转要去医院，不要硬扛。",
)
UNSAFE = (
    "不用按医嘱，药可以自行加倍。",
    "药可以和酒同服，好转就自行停药。",
    "不见好转也不要去医院，硬扛就行。",
)

# Turns before the last one in a dialogue of several turns: the doctor asks first.
FIRST_QUESTIONS = ("医生，我{a}，怎么回事？", "您好，我最近{a}。", "请问{a}要紧吗？")
FIRST_INQUIRIES = (
    "您好，{a}多久了？有没有{b}？",
    "请问除了{a}，还有{b}或{c}吗？",
    "您好，别急，有没有{c}？",
)
REPLIES = ("有{b}，大概三天了。", "对，还有{b}、{c}。", "有，{c}，吃什么药？")
