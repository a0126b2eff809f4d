"""Sentence patterns of the planted contradictions and of what only looks like one, in Chinese.

They were written before the rules of ``zhongjing.construct.kg`` and are used by nothing but the planted set.
The rules hold no sentence of this file; single everyday words (``不能``, ``每天``) stand in both, as they must.

Slots: ``{d}`` the condition asked about, ``{m}`` a medicine that is recommended for it, ``{x}`` what the
medicine is contraindicated in (a condition or a group of people), ``{y}`` a condition that it is not,
``{s}`` a food or drink that it does not go with, ``{r}`` the right medicine, ``{w}`` another condition's
medicine, ``{q}`` an amount for one time, ``{t}`` an amount for a day, ``{f}`` how often.
A pattern is a tuple of turns, the patient first.
"""

from __future__ import annotations

Turns = tuple[str, ...]

# The patient has {x}; the doctor gives {m} all the same.
CONTRAINDICATED: tuple[Turns, ...] = (
    ("我有{x}好几年了，这阵子{d}又犯了。", "{d}的话，{m}先吃上一个疗程看看。"),
    ("本人{x}，如今又查出{d}，求个方子。", "给您开点{m}，按时吃就成。"),
    ("医生您好，{d}。", "好的，以前还有什么毛病没有？", "{x}，别的没了。", "了解了，那就拿{m}回去，饭后服。"),
    ("{x}的人碰{m}要不要紧？", "放心用，问题不大。"),
    ("我这情况属于{x}，{m}敢吃吗？", "吃吧，没啥妨碍。"),
    ("最近被{d}折磨得不行，病历上还写着{x}。", "您这种情形，{m}效果最好，今晚就开始。"),
    ("{d}怎么处理？", "{x}人群照常服{m}即可，无需调整。"),
    ("老毛病是{x}，新毛病是{d}，两样一起怎么弄？", "不矛盾的，选{m}就对了。"),
    ("上周刚确诊{d}，我同时也是{x}。", "我的意见是{m}打底，其余再观察。"),
    ("{d}拖了半个月。哦，还有{x}。", "别慌，我一般都让病人上{m}，您也一样。"),
    ("想问下，得过{x}，眼下{d}，选哪个药？", "药店里的{m}买一盒，挺对症。"),
    ("我{x}三年了，听人说{m}灵，行不行？", "行的，可以放心大胆地用。"),
)

# The doctor lets {m} be taken with {s}.
MIXED: tuple[Turns, ...] = (
    ("吃{m}这几天想来点{s}，碍事吗？", "不碍事，少量就好。"),
    ("{d}吃什么好得快？", "{m}配着{s}一道下肚，吸收更快。"),
    ("我每晚都离不开{s}，{d}该吃啥？", "那也无妨，{m}照吃，{s}照旧。"),
    ("{m}能跟{s}同一天吗？", "没有影响的，随意。"),
)

# An amount above what the medicine allows ({q}, {f} or {t} are drawn so).
OVERDOSED: tuple[Turns, ...] = (
    ("{d}，{m}怎么个吃法？", "{m}每回{q}，{f}。"),
    ("{m}吃多少合适？", "照我的经验，一次来{q}，{f}，见效快。"),
    ("请问{d}的用药量？", "可选{m}，单次{q}，{f}，连用五天。"),
    ("孩子他爸{d}，家里备了{m}，吃几多？", "{f}，每次给他{q}就够了。"),
    ("{d}。", "处方：{m} {q} {f}。"),
    ("我这{d}要吃多大量？", "吃{q}{m}，{f}。"),
    ("{m}的量我老记不住。", "您记好：{f}、一次{q}。"),
)
OVERDOSED_DAILY: tuple[Turns, ...] = (
    ("{m}一天顶多吃到多少？", "全天加起来{t}都行。"),
    ("{d}要吃多少{m}？", "{m}日总量用到{t}，分着吃。"),
    ("{d}疼得厉害，{m}能加吗？", "可以加，{m}一天{t}。"),
    ("{m}的上限是多少？", "{m}每天别多于{t}就可以。"),
)

# A medicine that the graph has for something else only.
MISMATCHED: tuple[Turns, ...] = (
    ("{d}吃哪种药？", "{d}就靠{w}来治，坚持半个月。"),
    ("确诊{d}了，求推荐。", "推荐{w}，口碑很好。"),
    ("最近{d}，睡不踏实。", "这是{w}的适用范围，买来吃。"),
    ("{d}需要吃什么？", "{w}专门对付{d}的，您试试。"),
    ("{d}", "给您上{w}，两周后复查。"),
    ("我妈{d}，拿什么药？", "老人家{d}，{w}最稳妥。"),
)

# Nothing is wrong here, though the same names stand side by side.
HARMLESS: tuple[Turns, ...] = (
    ("我有{x}，{d}能吃{m}吗？", "您有{x}，{m}这药碰不得。"),
    ("{x}的人碰{m}要不要紧？", "万万不可，会出事的。"),
    ("{x}吃{m}行吗？", "不行，得换一种。"),
    ("{d}，没有{x}，身体一向好。", "那{m}很合适，吃一周。"),
    ("{d}。{x}我倒是没得过。", "好，{m}就行。"),
    ("{d}好些天了。", "您排除过{x}吗？", "查过了，不是{x}。", "那么用{m}。"),
    ("我爸有{x}，不过今天是替自己问{d}。", "您本人的话，{m}可以吃。"),
    ("{d}，自己买了{m}，可我有{x}。", "赶紧把{m}停了。"),
    ("我{x}，最近{d}。", "您现在是不是一直在吃{m}？"),
    ("我{x}，最近{d}。", "凡{x}者均应避开{m}，您来医院另选。"),
    ("我{x}，最近{d}。", "{m}对{x}有风险，不建议。"),
    ("我有{y}，最近{d}。", "{d}用{m}，跟{y}不冲突。"),
    ("{d}该用啥？", "{d}先用{r}。"),
    ("{d}，别人介绍{w}。", "{w}治不了{d}，还是{r}。"),
    ("{w}能治{d}吗？", "不能，那是治别的病的。"),
    ("{m}期间想来点{s}。", "这期间{s}一口都别沾。"),
    ("吃{m}能喝{s}吗？", "两样不可同用，隔开至少一周。"),
    ("除了{d}没有其他病。", "{m}可以，若合并{x}则另当别论。"),
)
# {q}, {f}, {t} are drawn within the range, but for the patient's own words and what is forbidden ({Q}, {T}).
HARMLESS_DOSES: tuple[Turns, ...] = (
    ("{d}，{m}怎么个吃法？", "{m}每回{q}，{f}。"),
    ("{m}吃多少合适？", "一次{q}，{f}，足矣。"),
    ("{d}。", "处方：{m} {q} {f}。"),
    ("我昨天一口气吞了{Q}的{m}。", "太多了，{m}每次{q}才对。"),
    ("{m}一次{Q}可以吗？", "不可以，{m}一次{q}，{f}。"),
    ("{m}的量？", "一次{q}，切忌一次吃到{Q}。"),
    ("{m}一天{T}行不行？", "超量了，一天{t}封顶。"),
    ("{m}一天顶多吃到多少？", "全天加起来{t}以内。"),
)
