"""Imports what the processes of jobs import, for the server that forks them.

See ``zhongjing.backends.local.fork_server``. Everything is imported by the modules that need it; what they
import only when they are called is named here.
"""

import torch
import torch.utils.tensorboard
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

import zhongjing.train.job.curves
import zhongjing.train.job.driver
import zhongjing.train.job.prometheus
import zhongjing.train.job.ray_tasks
import zhongjing.train.job.sample_answers
import zhongjing.train.job.worker
import zhongjing.train.loop
import zhongjing.train.stages.build  # noqa: F401
from zhongjing.train.distributed import prepare_deepspeed

prepare_deepspeed(torch.device("cpu"))
