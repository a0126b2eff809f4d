"""Imports what the processes of jobs import, for the server that forks them.

See ``zhongjing.backends.local.fork_server``. Everything is imported by the modules that need it; what they
import only when they are called is named here.
"""

import torch
import torch.utils.tensorboard
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

import zhongjing.train.curves
import zhongjing.train.job
import zhongjing.train.loop
import zhongjing.train.programs
import zhongjing.train.prometheus
import zhongjing.train.ray_tasks
import zhongjing.train.ray_worker
import zhongjing.train.sample_answers  # noqa: F401
from zhongjing.train.distributed import prepare_deepspeed

prepare_deepspeed(torch.device("cpu"))
