"""The checks of ``zhongjing doctor``, one concern a module.

Each module gathers facts (reading, trying) and judges them (a pure function from facts to findings), so that
tests can judge machines that they do not run on. What may crash or hang, or must not load into the command
line (torch, S3 clients, Ray), runs in a child process.
"""
