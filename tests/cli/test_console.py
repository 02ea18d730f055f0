"""What the consoles let through."""

from __future__ import annotations

import pytest
from rich.table import Table

from fedshield.cli import console


@pytest.mark.parametrize(
    "acting", ["\x1b[2K\x1b[1A", "\r", "\x07", "\x9b2K", "\u202e", "\u2066", "\u200f", "\x00"]
)
def test_nothing_that_is_told_acts_on_a_terminal(
    acting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A roster of a coordinator's making names sites; erasing a line hides what stands there."""
    console.say("EXPOSED", f"lab{acting}all fine")
    console.print_notes([f"lab{acting}all fine"])
    table = Table()
    table.add_column(f"x{acting}")
    table.add_row(f"lab{acting}all fine")
    console.out_console.print(table)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert acting not in text
        assert not set(acting) & set(text) - set("[2K1A")
    assert "EXPOSED" in printed.out
    assert acting.encode("unicode_escape").decode() in printed.out


def test_text_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    words = "naïve café, 漢字, 👩\u200d⚕️, tab\there"
    console.say("answer", words + "\nand a second line")
    out = capsys.readouterr().out
    assert "naïve café, 漢字, 👩\u200d⚕️, tab" in out
    assert out.endswith("\nand a second line\n")
