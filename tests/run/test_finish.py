"""What a reader must know of the answers in a report."""

from __future__ import annotations

from fedshield.run.finish import whose_answers


def test_whose_adapter_answered_is_said_where_there_are_several() -> None:
    assert whose_answers(("",)) == []
    assert whose_answers(("bank",)) == []
    (note,) = whose_answers(("bank", "clinic"))
    assert note.startswith("answers are those of the adapter of bank: ")
