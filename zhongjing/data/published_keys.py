"""The keys that published records use, by what stands under them. A new layout often needs a name here.

Sources: the data sets' own cards (CMtMedQA, Huatuo-26M, HuatuoGPT and -o1, CMB, Toyhom, UltraFeedback), and
what LLaMA-Factory, MedicalGPT, TRL, OpenRLHF, ms-swift and axolotl document.
"""

from __future__ import annotations

# Turns of a dialogue.
TURN_LISTS = ("messages", "conversations", "conversation", "data", "context_messages")
ROLES = ("role", "from", "角色", "说话人")
CONTENTS = ("content", "value", "text", "内容", "发言")
ASKED = ("user", "human")  # of an exchange
ANSWERED = ("assistant", "gpt", "bot")
LEARN = ("weight", "loss", "loss_scale", "train")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call", "tool_call_id")
SYSTEMS = ("system", "system_prompt")

# Parts of a question, in the order in which they are joined; of each the first name that says something.
INSTRUCTIONS = ("instruction", "instruct")
CONTEXTS = ("context", "background", "背景")
QUESTIONS = ("question", "query", "prompt", "ask", "问", "问题", "questions")
INPUTS = ("input",)
OPTIONS = ("options", "option", "choices", "选项")

ANSWERS = ("output", "response", "answer", "completion", "target", "答", "回答", "答案", "答复", "answers")
TEXTS = ("text", "content", "正文")
DEPARTMENTS = ("department", "cate1", "cate2", "科室", "related_diseases_department")

# Answers in an order of preference.
PAIRS = (
    ("chosen", "rejected"),
    ("response_chosen", "response_rejected"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),  # StackExchange, paired: j is the better one
)
# Names of the scores of a pair, the better one's first (UltraFeedback binarized, argilla, intel-orca).
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
REJECTED_BESIDE = ("rejected_response", "rejected_messages")  # beside a whole dialogue (ms-swift)
RANKED = ("answers", "responses", "completions")
RANKED_TEXTS = ("text", "content", "answer", "response", "completion")  # of an answer that is a mapping
RANKS = ("ranks", "rank")
SCORES = ("scores", "score", "ratings", "rating", "rewards", "reward")
OWN_RANKS = ("rank",)
OWN_SCORES = ("score", "rating", "reward", "overall_score")
# Columns of a table, one for each answer and one for its rank or score; their names end alike: 答案1, 排名1.
NUMBERED = {
    "answers": ("answer", "response", "completion", "答案", "回答", "答复", "回复", "候选", "答"),
    "ranks": ("rank", "ranking", "排名", "排序", "名次"),
    "scores": ("score", "rating", "评分", "得分", "打分", "分数"),
}
NUMBERS = r"[ _-]?(\d{1,2}|[a-f]|[甲乙丙丁一二三四五六七八九十])"
# A ranking may list places or the answers' numbers; which answer is the best may be told by number or letter.
DECIDING = (
    *("ranking", "rankings", "best", "best_answer", "winner", "preference", "preferred"),
    *("最佳", "最佳回答", "最佳答案", "最优", "最优回答", "首选", "偏好"),
)

# What no stage trains on.
MEDIA = ("images", "image", "videos", "audios", "objects")
TOOLS = ("tools", "functions")
VERDICTS = ("kto_tag", "label")
REFUSABLE = {*MEDIA, *TOOLS, *VERDICTS, "completions", "positive_messages", "negative_messages"}

ORIGIN = "_origin"
"""Where a constructed record comes from (:mod:`zhongjing.construct.parts`): told nowhere as left out."""

CAPITALS = ("Question", "Complex_CoT", "Response", "Answer", "Options", "Input", "Output", "Instruction")
"""Published with a capital; read as their lower case."""
