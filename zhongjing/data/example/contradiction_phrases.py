"""Sentence patterns of the planted contradictions and of what only looks like one, in Chinese.

They were written before the rules of ``zhongjing.construct.kg``, and only the planted set uses them. The
rules hold no sentence of this file; single everyday words (``不能``, ``每天``) stand in both, as they must.

Slots: ``{d}`` the condition asked about, ``{m}`` a medicine that is recommended for it, ``{x}`` a condition
that the medicine is contraindicated in, ``{y}`` one that it is not contraindicated in, ``{g}`` a group of
people that it is contraindicated in, ``{s}`` a food or drink that it does not go with, ``{r}`` the right
medicine, ``{w}`` another condition's medicine, ``{q}`` an amount for one time, ``{t}`` an amount for a day,
``{f}`` how often. A pattern is a tuple of turns, the patient first.
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

# The patient is one of a group that {m} is not for.
WRONG_GROUP: tuple[Turns, ...] = (
    ("我是{g}，{d}怎么办才好？", "{d}嘛，{m}按说明书用就行。"),
    ("{g}得了{d}拿什么治？", "{g}同样适用{m}，剂量照旧。"),
    ("家属是{g}，能不能服用{m}？", "可以服用，不用多虑。"),
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

# Written when the rules were there, to see how they do on sentences that had no part in them.
LATER_CONTRAINDICATED: tuple[Turns, ...] = (
    (
        "大夫，{d}反反复复，另外体检提示{x}，请问用药有什么讲究？",
        "考虑到病程较长，首选方案仍是{m}，疗程四周。",
    ),
    ("既往史：{x}。主诉：{d}。", "建议予{m}口服治疗，定期随访。"),
    ("您好，我{d}。", "您有{x}吗？", "有的，十来年了。", "明白，先用{m}控制住再说。"),
    ("{d}合并{x}，指南怎么推荐？", "一线药物就是{m}，疗效确切。"),
    ("一直在治{x}，这两天{d}也来了，愁死人。", "愁什么，{m}一吃就灵。"),
    ("{x}老病号了，朋友塞给我一瓶{m}，可以试吗？", "可以试试，不会有事。"),
    ("听说有{x}就不能吃{m}，是真的吗？", "没那回事，照样能吃。"),
    ("我{x}，{d}挺重的。", "即便有{x}，{m}也是安全的。"),
)
LATER_MIXED: tuple[Turns, ...] = (
    ("{d}好几天了，嘴馋{s}。", "{m}按时吃，{s}想喝就喝。"),
    ("可以用{s}送服{m}吗？", "可以的，都一样。"),
    ("平时{s}没断过，{d}求药。", "那给您配{m}，回去就吃。"),
)
LATER_OVERDOSED: tuple[Turns, ...] = (
    ("{d}需要怎么服药？", "口服{m}，剂量为每次{q}，{f}，饭后半小时服用。"),
    ("{m}说明书丢了。", "{f}，{q}一次，别忘了。"),
    ("{d}加重了。", "这样，{m}加量，改为{q}，{f}。"),
    ("{d}怎么治？", "1. {m}：{q}，{f}；2. 注意休息。"),
    ("{m}的剂量怎么掌握？", "一般{f}，每次服{q}左右。"),
)
LATER_OVERDOSED_DAILY: tuple[Turns, ...] = (
    ("{m}最多能吃多少？", "24小时之内可以吃到{t}。"),
    ("{d}用{m}，一天的量是多少？", "每日总剂量{t}，分次服用。"),
    ("{d}很难受。", "{m}可用至{t}/日。"),
)
LATER_MISMATCHED: tuple[Turns, ...] = (
    ("被诊断为{d}，请问药物治疗方案？", "目前治疗{d}的首选药物是{w}。"),
    ("{d}能根治吗？", "坚持服用{w}，大部分{d}患者能痊愈。"),
    ("{w}对{d}管用吗？", "管用，放心吃。"),
    ("{d}两个月，之前没用过药。", "先口服{w}两周看看效果。"),
)
LATER_HARMLESS: tuple[Turns, ...] = (
    ("大夫，{d}反反复复，另外体检提示{x}。", "{x}是{m}的禁忌，请到医院调整方案。"),
    ("既往史：否认{x}。主诉：{d}。", "建议予{m}口服治疗，定期随访。"),
    ("您好，我{d}。", "您有{x}吗？", "没有，身体底子不错。", "明白，先用{m}控制住再说。"),
    ("听说有{x}就不能吃{m}，是真的吗？", "是真的，{x}患者服{m}可能会加重病情。"),
    ("{x}老病号了，朋友塞给我一瓶{m}，可以试吗？", "千万别试，很危险。"),
    ("我{x}，之前吃过{m}，过敏了。", "这类药以后都不要再用。"),
    ("我妈妈{x}，我自己{d}，药能混着吃吗？", "您自己吃{m}即可，您母亲的药另开。"),
    ("{d}怎么办？", "{m}可以吃，不过如果您有{x}，就要换药。"),
    ("{d}吃着{m}呢。", "好的，{m}继续吃，不要擅自停药，{s}先戒掉。"),
    ("{d}和{w}有关系吗？", "{w}不是治{d}的药。"),
    ("{d}需要用药吗？", "可以口服{m}，平时清淡饮食，不要吃辛辣，不要熬夜。"),
)
LATER_HARMLESS_DOSES: tuple[Turns, ...] = (
    ("{d}需要怎么服药？", "口服{m}，剂量为每次{q}，{f}，饭后半小时服用。"),
    ("{m}最多能吃多少？", "24小时之内不能超过{t}。"),
    ("{m}我一次吃了{Q}，头晕。", "一次{Q}明显过量了，请马上去急诊。"),
    ("{d}怎么治？", "1. {m}：{q}，{f}；2. 注意休息。"),
    ("{m}一天{T}可以吗？", "一天{T}不安全，{t}以内为宜。"),
    ("{d}加重了。", "{m}不要自己加到{Q}，仍是{q}，{f}。"),
)
