"""From answers of a model to rankings: prompts, answers, tasks for people. No module needs torch."""
