"""The limits of a container, from trees of control groups as the kernel makes them."""

from __future__ import annotations

from pathlib import Path

from zhongjing.backends.local.cgroups import Limits, read_limits

GIB = 2**30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


V2_MOUNT = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_2_the_tightest_of_all_ancestors_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pod/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.events": "oom 3\noom_kill 2\n",
            "sys/fs/cgroup/pod/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/pids.max": "max\n",
            "sys/fs/cgroup/pod/box/pids.max": "1024\n",
            "sys/fs/cgroup/pod/box/pids.current": "24\n",
        },
    )
    assert read_limits(root) == Limits(
        cpus=1.5, memory=8 * GIB, memory_used=3 * GIB, tasks=1024, tasks_used=24, killed=2
    )


def test_version_2_without_limits(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
    )
    assert read_limits(root) == Limits()


def test_version_1_a_path_of_the_host_that_is_not_mounted(tmp_path: Path) -> None:
    """As docker does it: the group's name is the host's, and the mount is the group itself."""
    mounts = "".join(
        f"{number} 20 0:{number} /docker/abc /sys/fs/cgroup/{name} ro - cgroup cgroup rw,{name}\n"
        for number, name in enumerate(("memory", "cpu,cpuacct", "pids"), start=31)
    )
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:pids:/docker/abc\n0::/\n",
            "proc/self/mountinfo": mounts,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
            "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/pids/pids.max": "max\n",
        },
    )
    assert read_limits(root) == Limits(cpus=3.0, memory=2 * GIB, memory_used=GIB // 2, killed=1)


def test_version_1_without_limits(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/gone\n3:cpu:/\n",
            "proc/self/mountinfo": "31 20 0:1 / /cg/memory rw - cgroup none rw,memory\n"
            "32 20 0:2 / /cg/cpu rw - cgroup none rw,cpu\n",
            "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/cpu/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_limits(root) == Limits()


def test_no_control_groups(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits()
