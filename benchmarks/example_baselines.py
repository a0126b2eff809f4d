"""What simple rankers reach on the example rankings, beside which a reward model is to be seen.

``python benchmarks/example_baselines.py [SEED ...]`` prints one JSON object a seed: pair accuracy on the
held-out conditions of "the longer answer wins" and of a bag-of-words ranker. No torch; seconds.
"""

import json
import sys

from zhongjing.data.example.baselines import longer_wins, pair_accuracy, train_bag_of_words
from zhongjing.data.example.generate import generate


def main() -> None:
    """Prints a line for each seed."""
    for seed in [int(word) for word in sys.argv[1:]] or [0]:
        data = generate(seed)
        ranker = train_bag_of_words(data.rankings)
        figures = {
            "seed": seed,
            "rankings": len(data.rankings),
            "heldout": len(data.rankings_heldout),
            "longer_wins": round(pair_accuracy(data.rankings_heldout, longer_wins), 4),
            "bag_of_words": round(pair_accuracy(data.rankings_heldout, ranker), 4),
            "bag_of_words_on_its_training_data": round(pair_accuracy(data.rankings, ranker), 4),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
