"""Names that no site may have, wherever a name is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedshield.errors import PlanError
from fedshield.plan.load import parse_plan
from fedshield.site_names import RESERVED_NAMES, holder_of_reserved_name


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_plan_with_another_partys_name_for_a_site_is_refused(tmp_path: Path, name: str) -> None:
    source = {"source": "sample:medical"}
    raw = {"name": "x", "rounds": 1, "model": {"name": "tiny-llama"}}
    with pytest.raises(PlanError, match=rf"data\.sites.*other than {name} \(that is ") as caught:
        parse_plan(raw | {"data": {"sites": {name: source, "north": source}}}, base_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_ordinary_names_are_free() -> None:
    assert {holder_of_reserved_name(name) for name in ("north", "server-1", "admins")} == {None}
