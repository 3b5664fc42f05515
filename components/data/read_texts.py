"""Readers of plain text: whole files, in pieces that end with a line, so that a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator

from components.data.read import RawRow, Roles, open_file
from components.data.units import Unit


def read_text(unit: Unit, roles: Roles) -> Iterator[RawRow]:
    """One row: the lines that begin within the unit's bytes, as they are. None of them gives an empty text."""
    start, stop = unit.byte_range or (0, 0)
    with open_file(unit.files[0]) as handle:
        if start:
            # A line that begins before belongs to the piece before; it may end right at `start`.
            handle.seek(start - 1)
            start += len(handle.readline()) - 1
        content = b""
        if start < stop:
            content = handle.read(stop - start)
            if not content.endswith(b"\n"):
                content += handle.readline()
    try:
        text = content.decode("utf-8-sig" if unit.byte_range and unit.byte_range[0] == 0 else "utf-8")
    except UnicodeDecodeError:
        yield RawRow(None, None, problem="it is not UTF-8")
    else:
        yield RawRow(text, None)
