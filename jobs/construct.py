"""Job that makes sources of raw records.

``python -m jobs.construct --request s3://.../requests/a1.json``, on a Ray cluster.
"""

import sys

from zhongjing.config.stages import Stage
from zhongjing.train.job.entry import main

if __name__ == "__main__":
    sys.exit(main(Stage.CONSTRUCT))
