from __future__ import annotations

import pytest

from components.errors import SpecError
from components.tracking.names import checked_name


@pytest.mark.parametrize("name", ["digits", "a", "News-2_b", "0" * 63])
def test_plain_name_passes(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\n", "-a", "0" * 64, None])
def test_other_name_is_refused_with_its_field(name: str) -> None:
    with pytest.raises(SpecError) as refusal:
        checked_name(name)
    assert refusal.value.field == "register.name"
