"""What can be wrong with sources and their records."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("Data", BAD_INPUT)
_code = GROUP.code

SOURCE_NOT_FOUND = _code(
    "SourceNotFound",
    "Nothing is at a source's URI.",
    cause="A typing error, another current folder, a glob that matches nothing, or data still to be made.",
    remedy="correct the URI, or say wait: true if it is still to be made",
)
INVALID_URI = _code(
    "InvalidUri",
    "A URI cannot be read as one.",
    cause="A scheme that is not known, or a part that is missing.",
    remedy="give a local path, s3://<bucket>/<key> or hf://datasets/<owner>/<name>",
)
UNREADABLE_SOURCE = _code(
    "UnreadableSource",
    "A source's file cannot be read.",
    cause="No permission, damage, or a compression or encoding that is not known.",
    remedy="check the file that the message names: `zhongjing data inspect URI --kind text` (or "
    "dialogue, ranking, prompts)",
)
AMBIGUOUS_READING = _code(
    "AmbiguousReading",
    "A source's file can be read in two ways.",
    cause="Encodings that share most bytes, arrays that may be records, a header that may be one.",
    remedy="set format or encoding of the source, as the message says",
)
EMPTY_SOURCE = _code(
    "EmptySource",
    "The sources of a stage have no records.",
    cause="An empty file, or a glob that matches only empty files.",
    remedy="check what the source's URI names: `zhongjing data inspect URI --kind text` (or "
    "dialogue, ranking, prompts)",
)
SOURCE_CHANGED = _code(
    "SourceChanged",
    "A source is not what it was when the pipeline was created.",
    cause="Its objects were replaced or cut: listings are frozen, so that a re-run reads the same data.",
    remedy="restore the objects, or read them as they are now: submit with --refresh-data",
)
TOO_MANY_BAD_RECORDS = _code(
    "TooManyBadRecords",
    "More of a source's records are bad than maxQuarantineFraction allows.",
    cause="Part of the file is damaged, or is of another kind or layout than the rest.",
    remedy="look at quarantine.jsonl, and correct the data, then submit with --refresh-data, or raise the "
    "source's maxQuarantineFraction",
)
REWRITTEN_ANSWERS = _code(
    "RewrittenAnswers",
    "The chat template cuts or rewrites answers, so that they would not be learned as they stand.",
    cause="Templates of reasoning models drop <think>...</think> (DeepSeek-R1 and its distillates).",
    remedy="set base.chatTemplate to one that keeps answers whole, or take the thoughts out of the data",
)
NO_GOOD_RECORD = _code(
    "NoGoodRecord",
    "Every record of a stage's sources is bad or was left out.",
    cause="The wrong kind or field names, samples that are all longer than maxLength, or all duplicates.",
    remedy="look at the sources with `zhongjing data inspect -f FILE`, and correct kind, columns, "
    "maxLength or data (corrected data: submit with --refresh-data)",
)
AMBIGUOUS_RECORD = _code(
    "AmbiguousRecord",
    "Records can be read in two ways, and one of them would train on the wrong thing.",
    cause="Two fields that could both be the answer, answers without an order, a dialogue within a question.",
    remedy="set the field of the source that the message names",
)
UNKNOWN_LAYOUT = _code(
    "UnknownLayout",
    "The records are of no layout that is known for this kind of source.",
    cause="Other field names than the published datasets have.",
    remedy="name the keys under `columns` of the source, or correct its kind",
)
TOO_FEW_ANSWERS = _code(
    "TooFewAnswers",
    "A ranking needs at least two answers to one question.",
    cause="K = 1: with one answer there is nothing to compare.",
    remedy="give every question two ranked answers or more",
)
INVALID_MIXTURE = _code(
    "InvalidMixture",
    "The mixture of sources cannot be made.",
    cause="A share of 0 or less, or a source that has no samples.",
    remedy="correct the weights of the stage's data",
)
DAMAGED_CACHE = _code(
    "DamagedTokenCache",
    "The token cache is damaged or not finished.",
    cause="Objects below cache/tokens were removed or changed.",
    remedy="remove the folder that the message names; the next run makes it anew",
)
UNUSABLE_RECORD = _code(
    "UnusableRecord",
    "A record or dialogue cannot be used as it is.",
    cause="It has no words, ends with the wrong speaker, or is longer than the model can see.",
    remedy="correct or remove it (the message names the place), then submit with --refresh-data",
)
MISSING_INPUT = _code(
    "MissingInput",
    "A stage needs the result of another one, which does not exist.",
    cause="Only some stages were asked for, and one that they stand on was never run.",
    remedy="run the stage that the message names, or everything with --stage all",
)
