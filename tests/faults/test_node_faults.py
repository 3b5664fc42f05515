"""Row B6: a node of a real Ray that is killed again and again under a sweep, beside Ray Tune as it is shipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
EVERY_S = 10


def sweep_on_dying_nodes(folder: Path, kills: int, every_s: float, whose: str) -> dict[str, Any]:
    # A Ray of its own: not the one of other tests.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.faults.lost_nodes", str(folder), str(kills), str(every_s), whose]
    done = subprocess.run(command, cwd=ROOT, env=ours, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_B6_all_trials_finish_although_a_node_is_killed_every_ten_seconds(tmp_path, repeats):
    kills = repeats(3, 30)
    found = sweep_on_dying_nodes(tmp_path, kills, EVERY_S, "ours")
    print(f"{kills} nodes killed: {found}")
    assert found["states"] == ["finished"] * (2 * kills + 2)
    # Of the epochs that were begun, those that had to be done again are the time lost to the kills.
    assert found["done"] / found["begun"] >= 0.8


def test_B6_control_plain_ray_tune_loses_the_trials_of_a_lost_node(tmp_path):
    # At the first epoch on the node: its trial is then at its beginning, however slow the machine is.
    found = sweep_on_dying_nodes(tmp_path, 1, 0, "plain")
    print(f"1 node killed: {found}")
    assert "failed" in found["states"]
