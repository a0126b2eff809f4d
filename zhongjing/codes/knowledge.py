"""What can be wrong with a knowledge graph, and what a graph can find wrong with a record."""

from zhongjing.codes.code import BAD_INPUT, Group

GROUP = Group("Knowledge graph", BAD_INPUT)
_code = GROUP.code

GRAPH_UNREADABLE = _code(
    "GraphUnreadable",
    "A file of a knowledge graph cannot be read.",
    cause="Damage, an encoding that is not known, or another syntax than the file's ending says.",
    remedy="correct the file at the place that the message names",
)
GRAPH_LAYOUT_UNKNOWN = _code(
    "GraphLayoutUnknown",
    "A file of a knowledge graph has a layout that is not known.",
    cause="Other field names than the published graphs have, or a file that is no graph.",
    remedy="give triples under head, relation, tail (JSON, JSON lines, CSV, TSV), Turtle, or lists of names",
)
GRAPH_EMPTY = _code(
    "GraphEmpty",
    "A knowledge graph has no entity.",
    cause="An empty folder or file, or a wrong path.",
    remedy="check what the path of the graph names",
)
CONTRADICTS_GRAPH = _code(
    "ContradictsGraph",
    "A dialogue contradicts the knowledge graph.",
    cause="A medicine that is contraindicated, a dose out of range, or a medicine for something else.",
    remedy="read the finding: its triple says what the graph holds; correct the dialogue or the graph",
)
JUDGED_UNFIT = _code(
    "JudgedUnfit",
    "A language model that was shown the graph's facts found a problem in a dialogue.",
    cause="A contradiction, a medical error, a risk, an answer to another question, or an empty one.",
    remedy="read some of these dialogues: a model may be too strict; the kinds are counted in the manifest",
)
