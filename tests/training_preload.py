"""Imported once by the server that the ranks of tests are forked from. Starts no thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from zhongjing.train.distributed import prepare_deepspeed

prepare_deepspeed(torch.device("cpu"))
