"""What can be wrong with a language model that is asked over HTTP, and with the work given to it."""

from zhongjing.codes.code import BAD_INPUT, UNREACHABLE, Group

GROUP = Group("Language models that write data", BAD_INPUT)
_code = GROUP.code

INVALID_MODEL_SERVER = _code(
    "InvalidModelServer",
    "The address, the limits or the prices of a language model cannot be used.",
    cause="A URL without a scheme or with a key in it, a limit below 1, a budget without prices.",
    remedy="give the base URL of an OpenAI-compatible server, e.g. https://api.openai.com/v1",
)
API_KEY_MISSING = _code(
    "ApiKeyMissing",
    "There is no API key where one is said to be.",
    cause="The environment variable is not set in this process, or the file is not there or empty.",
    remedy="export the variable that the message names, or write the key into the file",
)
API_KEY_REFUSED = _code(
    "ApiKeyRefused",
    "The server of the language model refuses the API key (HTTP 401 or 403).",
    cause="A wrong, revoked or expired key, or one without a right to this model or from this place.",
    remedy="check the key; what is done is kept, and the same command goes on from there",
)
UNKNOWN_LANGUAGE_MODEL = _code(
    "UnknownLanguageModel",
    "The server has no such model (HTTP 404).",
    cause="A typing error in the model's name, a base URL without /v1, or a model that was withdrawn.",
    remedy="correct the model's name or the base URL: GET <base URL>/models lists the names",
)
OUT_OF_FUNDS = _code(
    "OutOfFunds",
    "The account at the server of the language model has no funds left.",
    cause="The credit is spent, or a monthly limit of the account is reached.",
    remedy="add funds; what is done is kept, and the same command goes on from there",
)
BUDGET_SPENT = _code(
    "BudgetSpent",
    "The next request could cost more than is left of the budget.",
    cause="The work is larger than estimated, or the answers are longer.",
    remedy="raise the budget and give the same command again: no stored answer is paid for twice",
)
PARAMETER_REFUSED = _code(
    "ParameterRefused",
    "The server does not take a parameter of the requests.",
    cause="Some models have a fixed temperature, or do not know a seed.",
    remedy="leave out the parameter that the message names",
)
UNKNOWN_PROMPT = _code(
    "UnknownPrompt",
    "There is no prompt of that name and version, or it cannot be used.",
    cause="A typing error, or a prompt that a later release brought.",
    remedy="name a version that the message lists",
)
NOT_DEIDENTIFIED = _code(
    "NotDeidentified",
    "Text would be sent to a language model that was not de-identified.",
    cause="The lineage of the source has no step deidentify; raw files and objects have none.",
    remedy="run `zhongjing data deidentify IN OUT` first, or add --accept-identifiable",
)
UNUSABLE_ANSWER = _code(
    "UnusableAnswer",
    "No answer of the language model to a record passed the checks.",
    cause="The model changes facts, cuts its answers or writes no JSON; or the record itself is odd.",
    remedy="look at the reasons in the quarantine; take a stronger model if they are many",
)
TOO_MANY_UNUSABLE_ANSWERS = _code(
    "TooManyUnusableAnswers",
    "The language model gives no usable answer to too many records.",
    cause="A model that is too weak for the task, a wrong chat template, or records that are no dialogues.",
    remedy="take a stronger model with another output, or allow more (--max-unusable, maxUnusableFraction)",
)
REQUEST_REFUSED = _code(
    "RequestRefused",
    "The server does not take the request for a record.",
    cause="The record is longer than the model's context, or a filter of the server does not let it through.",
    remedy="see the server's own code in the message; the other records go on",
)

SERVERS = Group("Servers of language models", UNREACHABLE)
LANGUAGE_MODEL_UNAVAILABLE = SERVERS.code(
    "LanguageModelUnavailable",
    "The server of the language model does not answer, or fails again and again.",
    cause="A wrong address, a proxy, an overloaded server, or limits of rate below what is asked for.",
    remedy="give the same command again later: what is done is kept; after 429 lower concurrency or rate",
)
