"""Zhongjing: trains Chinese medical language models through the whole pipeline.

Continued pretraining, supervised fine-tuning, a reward model from ranked answers, and PPO
(arXiv 2308.03549), on one machine (``--local``) or on a Kubernetes cluster.
"""

import logging

__version__ = "0.1.0"

# peft imports bitsandbytes, which warns where a kernel could be downloaded; it works without it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
