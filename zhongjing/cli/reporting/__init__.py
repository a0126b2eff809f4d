"""What ``zhongjing report`` does: collect what an issue report needs, without secrets or record text."""
