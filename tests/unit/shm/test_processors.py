"""Processors that nobody wants: those that the process may use at all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from isohub.shm import processors

GROUPS = {
    "no limit": ("0::/own\n", {"own/cpu.max": "max 100000\n"}, math.inf),
    "a limit": ("0::/own\n", {"own/cpu.max": "150000 100000\n"}, 1.5),
    "a limit of the group above": ("0::/a/own\n", {"a/own/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000"}, 0.5),
    "the lower of two": ("0::/a/own\n", {"a/own/cpu.max": "200000 100000", "a/cpu.max": "300000 100000"}, 2.0),
    "a container, which sees no groups above": ("0::/\n", {"cpu.max": "400000 100000\n"}, 4.0),
    "a group that is not to be seen from here": ("0::/../other\n", {"cpu.max": "100000 100000\n"}, 1.0),
    "version 1": (
        "3:cpu,cpuacct:/own\n1:memory:/m\n",
        {"cpu,cpuacct/own/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/own/cpu.cfs_period_us": "100000\n"},
        0.5,
    ),
    "version 1 without a limit": (
        "3:cpu,cpuacct:/own\n",
        {"cpu,cpuacct/own/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/own/cpu.cfs_period_us": "100000\n"},
        math.inf,
    ),
    "something else in the file": ("0::/own\n", {"own/cpu.max": "many\n"}, math.inf),
    "no control groups": (None, {}, math.inf),
}


@pytest.mark.parametrize("name", GROUPS)
def test_limit_of_a_control_group(name: str, tmp_path: Path):
    """A process may take as much processor time as the tightest of the control groups that it is in allows."""
    groups, files, expected = GROUPS[name]
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for place, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    assert expected == processors.quota(tmp_path)
