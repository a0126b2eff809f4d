"""One module a command of ``zhongjing``: its options, and what it does."""
