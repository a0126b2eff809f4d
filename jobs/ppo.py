"""Job of PPO.

``python -m jobs.ppo --request s3://.../requests/a1.json``, on a Ray cluster.
"""

import sys

from zhongjing.config.stages import Stage
from zhongjing.train.job.entry import main

if __name__ == "__main__":
    sys.exit(main(Stage.PPO))
