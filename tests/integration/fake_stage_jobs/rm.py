"""Fake job of the stage."""

from fake_stage_jobs.work import run
from zhongjing.config.stages import Stage

run(Stage.RM)
