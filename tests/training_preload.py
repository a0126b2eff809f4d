"""Imported once by the server that the ranks of tests are forked from. Starts no thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import tests.training_jobs  # noqa: F401 - imported for what it imports
from zhongjing.train.distributed import prepare_deepspeed

prepare_deepspeed(torch.device("cpu"))
