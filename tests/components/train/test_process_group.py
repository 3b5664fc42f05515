from __future__ import annotations

import subprocess
import sys

LAUNCHES = """
import sys
import components.train.launch, components.train.restarts
import components.train.group_trainer, components.train.process_group
sys.exit("torch" in sys.modules)
"""


def test_who_launches_a_group_does_not_import_torch() -> None:
    """On a small machine that is seconds."""
    done = subprocess.run([sys.executable, "-c", LAUNCHES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
