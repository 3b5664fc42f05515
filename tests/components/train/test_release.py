"""In processes of their own: what is in a heap depends on all that ran before."""

import subprocess
import sys

import pytest

HOLES = """
import sys, torch
from components.train.plan.measure import status_bytes
from components.train.release import release_heap
torch.ones(6 << 20)  # once a large block was given back, smaller ones are no longer mapped
kept = []
for _ in range(64):
    hole, stays = torch.ones(1 << 18), torch.ones(1 << 16)
    kept.append((hole, stays))
kept = [stays for _, stays in kept]
del hole
before = status_bytes("VmRSS")
if sys.argv[1] == "release":
    release_heap()
print((before - status_bytes("VmRSS")) >> 20)
"""


@pytest.mark.parametrize(("what", "given_back"), [("release", True), ("nothing", False)])
def test_holes_between_blocks_that_stay_go_back(what, given_back):
    done = subprocess.run([sys.executable, "-c", HOLES, what], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 40) == given_back, done.stdout  # of 64 MiB
