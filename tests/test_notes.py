"""Whatever a library says is in the list, once, and nowhere else."""

from __future__ import annotations

import logging
import warnings

import pytest

from fedshield.notes import library_words, one_line


def test_warnings_and_log_records_are_collected_once(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("transformers.models.some")
    with library_words() as texts:
        logger.warning("weights were\nnot used: %s", "a.bias")
        logger.warning("weights were\nnot used: %s", "a.bias")
        logger.info("a detail")
        warnings.warn("a library's warning", UserWarning, stacklevel=1)
    assert texts == ["weights were not used: a.bias", "a library's warning"]
    assert capfd.readouterr() == ("", "")


def test_the_loggers_are_as_they_were() -> None:
    logger = logging.getLogger("transformers")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with pytest.raises(ValueError, match="inside"), library_words():
        raise ValueError("inside")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_what_is_said_once_a_process_is_heard_again() -> None:
    from transformers.utils import logging as transformers_logging

    logger = transformers_logging.get_logger("transformers.test")
    for _ in range(2):
        with library_words() as texts:
            logger.warning_once("said once")
        assert texts == ["said once"]


def test_one_line_keeps_no_control_characters() -> None:
    assert one_line("a\tb\nc\x1b[31m" + "x" * 400, 14) == "a b c [31mx..."


def test_a_text_that_is_cut_says_so() -> None:
    assert one_line("a  long\nline", 11) == "a long line"
    assert one_line("a  long\nline", 10) == "a long ..."
