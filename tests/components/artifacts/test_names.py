"""Row 14 of the security checklist: no name that reaches the store leads out of its folder.

Every payload goes into every field whose value becomes a part of a path or an object's key. All are refused, and not a
byte outside the root is written or changed. Links, pipes and devices in the place of a file are in test_local_store.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from components.artifacts import open_artifact, write_artifact
from components.artifacts.manifest import FileEntry, content_digest
from components.errors import ArtifactError, PenstockError
from components.serve.endpoint import endpoint_path
from components.tracking import names, registry
from pipelines.run_folder import find_run
from pipelines.spec import load_spec
from tests.components.artifacts.stores import Backend, make_context, write

DOTS = ["..", ".", "../x", "../../x", "../../../../../../etc/passwd", "a/../../x", "a/..", "./x", "a/./b", "a//b", "a/",
        "/", "//x", "a/../b", "..//x", "....//x/../..", "x/.."]  # fmt: skip
ABSOLUTE = ["/etc/passwd", "//etc/passwd", "/tmp/x", "~/x", "~root/x", "file:///etc/passwd", "C:\\x", "C:/x",
            "\\\\host\\share", "/proc/self/environ", "/dev/null", "/dev/stdin"]  # fmt: skip
BACKSLASHES = ["..\\x", "..\\..\\x", "a\\..\\..\\x", "\\x", "..\\/x", "../\\x", "a\\b"]
ENCODED = ["%2e%2e/x", "%2e%2e%2fx", "..%2fx", "%2fetc%2fpasswd", "..%5cx", "%5c..%5cx", "%2e%2e%5cx", "%00x", "x%00"]
DOUBLE = ["%252e%252e/x", "%252e%252e%252fx", "..%252fx", "%25%32%65%25%32%65/x", "%c0%ae%c0%ae/x", "%c0%afx",
          "..%c0%af..%c0%afx", "%u002e%u002e/x", "&#46;&#46;/x", "\\u002e\\u002e/x", "\\x2e\\x2e/x"]  # fmt: skip
CONTROL = ["\0", "x\0", "x\0.json", "../x\0.json", "x\n", "x\r\ny", "\tx", "x\x7f", "\x1b[31mx", ""]
UNICODE = ["．．/x", "‥/x", "․․/x", "..∕x", "..⁄x", "..／x", "＼..＼x", "ｘ", "x\u202ey", "\ufeffx", "\u200b../x"]
OVERLONG = ["x" * 5000, "a/" * 3000 + "x", "../" * 2000 + "x"]
PAYLOADS = [*DOTS, *ABSOLUTE, *BACKSLASHES, *ENCODED, *DOUBLE, *CONTROL, *UNICODE, *OVERLONG]


def shown(payload: str) -> str:
    return f"{ascii(payload)[:24]}"


def tree(folder: Path) -> dict[str, str]:
    """All that lies below a folder, with the digest of each file."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in folder.rglob("*")
    }


def manifest_naming(name: str) -> bytes:
    """A manifest that is right in itself and names a file that way."""
    files = {name: FileEntry(hashlib.sha256(b"payload").hexdigest(), 7)}
    raw = {"kind": "model", "digest": content_digest(files), "files": {name: vars(files[name])}}
    return json.dumps(raw).encode()


def test_security_14_there_are_at_least_eighty_different_payloads() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 80


def test_security_14_a_file_name_in_a_manifest_never_leads_out_of_the_store(backend: Backend, tmp_path: Path) -> None:
    uri = write(backend.uri("a"), tmp_path).uri
    (tmp_path / "x").write_text("outside")
    before = tree(tmp_path)
    for payload in PAYLOADS:
        backend.put(uri, "manifest.json", manifest_naming(payload))
        with pytest.raises(ArtifactError):
            open_artifact(uri)
    after = tree(tmp_path)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {str(Path(uri, "manifest.json"))}


def creatable(payload: str) -> bool:
    """Whether a file of that very name can lie below a folder at all."""
    parts = payload.split("/")
    return (
        "\0" not in payload
        and len(payload) < 1000
        and all(part not in ("", ".", "..") and len(part.encode()) < 256 for part in parts)
    )


@pytest.mark.parametrize("payload", [payload for payload in PAYLOADS if creatable(payload)], ids=shown)
def test_security_14_a_file_of_such_a_name_is_not_committed(tmp_path: Path, payload: str) -> None:
    with pytest.raises(ArtifactError, match="not a plain path"):
        with write_artifact(str(tmp_path / "a"), "model", {}, make_context(tmp_path)) as draft:
            path = f"{draft.path}/{payload}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).write_text("payload")
    assert list(tmp_path.iterdir()) == []


def test_security_14_an_s3_address_never_leads_out_of_its_prefix(s3_client, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    for payload in PAYLOADS:
        with pytest.raises(ArtifactError):
            write(f"s3://artifacts/{payload}", tmp_path)
    assert "Contents" not in s3_client.list_objects_v2(Bucket="artifacts", Prefix="x")


SHORTEST = {"task": "image-classification", "data": {"source": "builtin://digits"}, "model": {"architecture": "mlp"}}
FIELDS: dict[str, Callable[[str, Path], object]] = {
    "name of the spec": lambda value, home: load_spec({**SHORTEST, "name": value}),
    "register.name": lambda value, home: load_spec({**SHORTEST, "register": {"name": value}}),
    "name of a model": lambda value, home: names.checked_name(value),
    "name of an endpoint": lambda value, home: endpoint_path(home, value),
    "run to resume or to stop": lambda value, home: find_run(home, value),
    "model in the registry": lambda value, home: registry.fetch_model(value, "1", f"sqlite:///{home}/mlflow.db"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_security_14_a_name_that_a_user_gives_never_becomes_a_path(tmp_path: Path, field: str) -> None:
    home = tmp_path / "home"
    (home / "runs" / "digits-0123456789").mkdir(parents=True)
    (home / "runs" / "digits-0123456789" / "run.json").write_text("{}")
    (home / "runs" / "digits-0123456789" / "spec.json").write_text("{}")
    (home / "runs" / "digits-0123456780").mkdir(parents=True)
    (home / "runs" / "digits-0123456780" / "run.json").write_text("{}")
    (home / "runs" / "digits-0123456780" / "spec.json").write_text("{}")
    before = tree(tmp_path)
    for payload in PAYLOADS:
        with pytest.raises(PenstockError):
            FIELDS[field](payload, home)
    assert tree(tmp_path) == before
