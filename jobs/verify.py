"""Job of ``helm test``: one optimizer step under ZeRO-2, by Ray Train, on one worker.

``python -m jobs.verify --gpus 1``, on a Ray cluster.
"""

import sys

from zhongjing.train.job.verify import main

if __name__ == "__main__":
    sys.exit(main())
