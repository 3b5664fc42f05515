from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.errors import UnavailableError
from components.serve import haproxy

GENERATED = """global
    stats socket /x/a.sock mode 666 level admin expose-fd listeners
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    http-request return status 200 content-type application/json string "{{}}" if routes
listen stats
  bind {stats}
  stats enable
"""


def run_wrapper(folder: Path, config: str) -> subprocess.CompletedProcess:
    """Runs the wrapper with `echo` in the place of HAProxy."""
    wrapper = haproxy.write_wrapper(folder)
    wrapper.write_text(wrapper.read_text().replace(haproxy.bundled_binary(), "echo"))
    (folder / "haproxy.cfg").write_text(config)
    command = [str(wrapper), "-db", "-f", str(folder / "haproxy.cfg"), "-sf", "7"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_wrapper_confines_pages_and_socket_and_keeps_the_arguments(tmp_path: Path) -> None:
    done = run_wrapper(tmp_path, GENERATED.format(stats="*:8404"))
    config = (tmp_path / "haproxy.cfg").read_text()
    assert done.stdout.split() == ["-db", "-f", str(tmp_path / "haproxy.cfg"), "-sf", "7"]
    assert "bind 127.0.0.1:9101" in config and "bind 127.0.0.1:8404" in config and "bind 127.0.0.1:8000" in config
    assert "mode 600" in config and "mode 666" not in config
    assert "status 404 if routes" in config


@pytest.mark.parametrize("bind", ["0.0.0.0:8404", ":::8404", "*:8404,:::8404"])
def test_wrapper_refuses_a_template_it_cannot_confine(tmp_path: Path, bind: str) -> None:
    done = run_wrapper(tmp_path, GENERATED.format(stats=bind))
    assert done.returncode == 78
    assert done.stdout == ""


def test_two_clusters_share_nothing(tmp_path: Path) -> None:
    first, second = (haproxy.haproxy_environment(tmp_path / name) for name in ("a", "b"))
    places = [key for key in first if key.endswith(("_PORT", "_PATH", "_LOC", "_BASE", "_FILE"))]
    assert len(places) == 9
    assert all(first[key] != second[key] for key in places)


def test_long_folder_gives_way_to_a_short_private_one(tmp_path: Path) -> None:
    place = haproxy.private_folder(tmp_path / ("x" * 120))
    assert len(str(place / ("n" * 56) / "a.sock.1234567.tmp")) <= 107
    assert place.stat().st_mode & 0o077 == 0
    place.rmdir()


def test_planted_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "haproxy").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(haproxy, "LONGEST_FOLDER", 1000)
    with pytest.raises(UnavailableError):
        haproxy.private_folder(tmp_path)


def test_real_haproxy_starts() -> None:
    done = subprocess.run([haproxy.bundled_binary(), "-v"], capture_output=True, text=True, check=True)
    assert "HAProxy version" in done.stdout
    assert os.access(haproxy.bundled_binary(), os.X_OK)
