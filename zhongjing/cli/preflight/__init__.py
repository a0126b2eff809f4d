"""What submit finds wrong before anything is started: local sources, local models, and this machine.

Jobs check all of this again, and completely. Here a few milliseconds say what would otherwise be said after
an upload and the start of Ray. So nothing is refused here that a job would take: a source is refused only
when all of it was read, and what would take long is left to the job.
"""
