"""The one local Ray of a `PENSTOCK_HOME`: started on demand, shared by commands, gone when nobody needs it.

`ray start` has no way to end one cluster of several, and `ray stop` ends all of them. So a keeper
(`python -m pipelines.ray_keeper`) leads a session of its own with Ray inside, and ends that session when no command
holds the lease and no endpoint is deployed. Ray's processes have groups of their own but share the session.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from components.artifacts.local_store import write_durably
from components.errors import SpecError, UnavailableError
from pipelines.processes import FileLock, end_session, is_alive, start_time

START_TIMEOUT_S = 90.0
LOCAL_VARIABLE = "PENSTOCK_LOCAL_RAY"
"""Set where `RAY_ADDRESS` is ours and not the user's."""
# A unix socket's path has at most 107 bytes; Ray's session name and socket name take about 65 of them.
LONGEST_TEMP_DIR = 40


@dataclass(frozen=True)
class RayCluster:
    """A running local Ray.

    Attributes:
        address: host:port for `RAY_ADDRESS`.
        dashboard: http:// address of the dashboard and job server.
        leader: Pid of the keeper, which leads the session.
        leader_start: Its start time, against pid reuse.
    """

    address: str
    dashboard: str
    leader: int
    leader_start: int

    def alive(self) -> bool:
        return is_alive(self.leader, self.leader_start)

    def end(self, grace_s: float = 5.0) -> None:
        """Ends what is left of the session. A leader's pid that is another process by now leads somebody else's."""
        if start_time(self.leader) in (None, self.leader_start):
            end_session(self.leader, grace_s)


def ray_folder(home: Path) -> Path:
    return home / "ray"


def record_path(home: Path) -> Path:
    return ray_folder(home) / "record.json"


def keeper_log(home: Path) -> Path:
    """What the keeper and Ray's own start printed."""
    return ray_folder(home) / "keeper.log"


def read_record(home: Path) -> RayCluster | None:
    """The cluster recorded under `home`, running or not."""
    try:
        return RayCluster(**json.loads(record_path(home).read_text()))
    except FileNotFoundError:
        return None


def write_record(home: Path, cluster: RayCluster) -> None:
    write_durably(record_path(home), json.dumps(asdict(cluster)))


def forget_record(home: Path) -> None:
    record_path(home).unlink(missing_ok=True)


def token_path(home: Path) -> Path:
    """The file with Ray's token, made at the first call: 256 random bits, readable by its owner alone."""
    path = ray_folder(home) / "token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        partial = path.with_name(f"token.{os.getpid()}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_hex(32))
        partial.rename(path)
    return path


def temp_dir(home: Path) -> Path:
    """Ray's session folder: under `home` if its path is short enough for unix sockets, else under /tmp.

    Not the folder that TMPDIR names: a run sets that to one of its own, and all processes must mean the same.

    Raises:
        UnavailableError: If the folder exists but is not ours alone (planted by another user).
    """
    inside = ray_folder(home) / "tmp"
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    place = inside if len(str(inside)) <= LONGEST_TEMP_DIR else Path("/tmp") / f"penstock-{os.getuid()}-{digest}"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = place.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise UnavailableError(f"{place} belongs to someone else; remove it, or choose a shorter PENSTOCK_HOME.")
    return place


def client_environment(home: Path) -> dict[str, str]:
    """What a process must have in its environment to talk to this Ray. The token itself stays in its file."""
    return {
        # What S3 is fetched into lies there; the default is relative to the command's folder.
        "PENSTOCK_HOME": str(home),
        # Generated code of `train.compile`; the default is a folder that any user of the machine could have made.
        "TORCHINDUCTOR_CACHE_DIR": str(home / "cache" / "compiled"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path(home)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        # How long a driver waits for the raylet, which `ray start` starts last: over a minute where much else runs.
        "RAY_gcs_server_request_timeout_seconds": "150",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }


def server_environment(home: Path) -> dict[str, str]:
    """What Ray's own processes must have: Serve's and DeepSpeed's variables count only where `ray start` runs."""
    from components.serve.haproxy import haproxy_environment

    environment = {**client_environment(home), **haproxy_environment(ray_folder(home)), **compute_environment()}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return environment


def compute_environment() -> dict[str, str]:
    """Settings of torch, DeepSpeed and the model hub's client that every process of ours shares.

    The operators that `make install` built are used from the virtual environment they belong to: in the common cache
    another build would make ninja rebuild them, and a killed build leaves a lock on which all later ones hang.
    """
    folder = str(Path(sys.executable).parent)
    others = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry and entry != folder]
    environment = {
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # ninja lies beside our Python, which need not be on the PATH of whoever started us.
        "PATH": os.pathsep.join([folder, *others]),
    }
    if not Path("/dev/nvidiactl").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


@contextmanager
def lease(home: Path) -> Iterator[None]:
    """Holds the cluster of `home` alive for a command; dropped by the kernel when the command dies."""
    lock = FileLock(ray_folder(home) / "lease")
    if not lock.acquire(shared=True, wait_s=30.0):
        raise UnavailableError("The Ray of this PENSTOCK_HOME is being ended by another process; try again.")
    try:
        yield
    finally:
        lock.release()


def connect_environment(home: Path) -> RayCluster | None:
    """Puts the address of a running Ray into `RAY_ADDRESS`: the one it names, or the local one, started if need be.

    Called before every stage that needs Ray, so that a local Ray that died meanwhile is replaced, not waited for.

    Returns:
        The local one; None if `RAY_ADDRESS` names another.

    Raises:
        SpecError: If another machine's Ray is named and its token is not on.
    """
    if os.environ.get("RAY_ADDRESS") and not os.environ.get(LOCAL_VARIABLE):
        refuse_open_cluster(os.environ["RAY_ADDRESS"], os.environ.get("RAY_AUTH_MODE"))
        return None
    os.environ.update(client_environment(home))
    cluster = ensure_ray(home)
    os.environ["RAY_ADDRESS"] = cluster.address
    os.environ[LOCAL_VARIABLE] = "1"
    return cluster


def has_died(home: Path, cluster: RayCluster) -> bool:
    """Whether the local Ray is gone: its keeper ended, or saw Ray end and took its record away."""
    return not cluster.alive() or read_record(home) != cluster


def refuse_open_cluster(address: str, auth_mode: str | None) -> None:
    """Raises SpecError if `address` is another machine's and requests to it would carry no token."""
    from components.serve.keys import is_loopback

    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]") or address
    if auth_mode == "token" or host in ("auto", "local") or is_loopback(host):
        return
    raise SpecError(
        f"RAY_ADDRESS is {address}, another machine's Ray, but its token is not on; set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH to the file with the cluster's token."
    )


def ensure_ray(home: Path) -> RayCluster:
    """Returns the running cluster of `home`, starting it if there is none. The caller holds the lease.

    Raises:
        UnavailableError: If Ray does not come up; names its log.
    """
    starting = FileLock(ray_folder(home) / "starting")
    if not starting.acquire(wait_s=START_TIMEOUT_S):
        raise UnavailableError(f"Process {starting.holder()} has been starting Ray for over {START_TIMEOUT_S:.0f} s.")
    try:
        cluster = read_record(home)
        if cluster is not None and cluster.alive():
            return cluster
        if cluster is not None:
            cluster.end()
            forget_record(home)
        return _start(home)
    finally:
        starting.release()


def _start(home: Path) -> RayCluster:
    log = keeper_log(home)
    environment = {**os.environ, **server_environment(home)}
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "pipelines.ray_keeper", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        cluster = read_record(home)
        if cluster is not None and cluster.leader == keeper.pid:
            return cluster
        if keeper.poll() is not None:
            raise UnavailableError(f"Ray did not start; its output is in {log}.")
        time.sleep(0.05)
    end_session(keeper.pid)
    raise UnavailableError(f"Ray did not start within {START_TIMEOUT_S:.0f} s; its output is in {log}.")


def stop_ray(home: Path) -> bool:
    """Ends the cluster of `home` and everything in its session; returns whether there was one."""
    cluster = read_record(home)
    if cluster is None:
        return False
    running = cluster.alive()
    cluster.end(grace_s=10.0)
    forget_record(home)
    return running
