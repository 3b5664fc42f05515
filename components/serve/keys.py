"""API keys of an endpoint: one a line in the file that PENSTOCK_API_KEYS_FILE names."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import stat
from pathlib import Path

from components.errors import SpecError

VARIABLE = "PENSTOCK_API_KEYS_FILE"
SHORTEST_KEY = 16
logger = logging.getLogger("penstock.serve")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def keys_file(host: str) -> Path | None:
    """The checked file of keys for an endpoint on `host`; None on loopback when none is named.

    Raises:
        SpecError: If `host` is not loopback and no file is named, or the file cannot be used.
    """
    name = os.environ.get(VARIABLE)
    if name:
        read_keys(Path(name))
        return Path(name).absolute()
    if is_loopback(host):
        return None
    raise SpecError(
        f"deploy.host is {host}, which other machines can reach, but no API keys are set; "
        f"name a file with one key a line in {VARIABLE}, or use 127.0.0.1.",
        field="deploy.host",
    )


def read_keys(path: Path) -> tuple[bytes, ...]:
    """SHA-256 digests of the keys in `path`.

    Raises:
        SpecError: If the file is absent, readable by others, empty, or holds a key that is too short.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SpecError(f"{VARIABLE} names {path}, which cannot be read ({error.strerror}).") from error
    with os.fdopen(descriptor, "rb") as handle:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o077:
            raise SpecError(f"{VARIABLE} names {path}, which others can read; run `chmod 600 {path}`.")
        lines = [line.strip() for line in handle.read(1 << 20).splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise SpecError(f"{VARIABLE} names {path}, which holds no key; write one key a line.")
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise SpecError(f"{path} holds a key of fewer than {SHORTEST_KEY} characters; make longer ones.")
    return tuple(hashlib.sha256(key).digest() for key in keys)


class KeyRing:
    """The keys of a running endpoint; a changed file is read again, so that keys are rotated without a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        self._refresh()

    def _refresh(self) -> None:
        facts = self._path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        if stamp != self._stamp:
            self._digests, self._stamp = read_keys(self._path), stamp

    def accepts(self, authorization: str | None) -> bool:
        """Whether the `Authorization` header holds one of the keys; every key is compared, whatever matches."""
        try:
            self._refresh()
        except (OSError, SpecError):
            # A file that is gone or half rotated lets nobody in; the log says why, the client does not learn it.
            logger.exception("The API keys cannot be read.")
            return False
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)
