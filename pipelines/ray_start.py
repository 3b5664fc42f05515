"""`ray start` without the Ray Client server, which nothing here uses. Run as `python -m pipelines.ray_start ARGUMENTS`.

`ray start --block` ends all of Ray when any of its processes dies, and on a busy machine the client server does: it
gives up on the others after 30 s. There is no option to leave it out; without its dependencies it is not started.
"""

from __future__ import annotations

import sys


def main() -> None:
    from ray.scripts import scripts

    # An attribute that is gone in another release must be found out by the tests, not hidden.
    assert hasattr(scripts, "get_ray_client_dependency_error")
    scripts.get_ray_client_dependency_error = lambda: "not used by Penstock"
    scripts.start(sys.argv[1:])


if __name__ == "__main__":
    main()
