"""What a library says while it works for us: captured, so that it is handled or shown.

Nothing that a library warns of may vanish. `library_words` collects its Python warnings and its log
records; the caller handles what it knows and puts the rest into the notes of the run, which the
console, `summary.json` and the report show.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("transformers", "peft", "accelerate", "datasets", "huggingface_hub", "tokenizers")
#: Characters of one captured text that are kept.
LONGEST = 300


def one_line(text: str, longest: int = LONGEST) -> str:
    """Text of a library's or a file's making, as it can stand in a one-line message; '...' ends one
    that is longer than `longest` characters."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(printable.split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


class _Collector(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(one_line(record.getMessage()))


@contextmanager
def library_words(libraries: tuple[str, ...] = LIBRARIES) -> Iterator[list[str]]:
    """Within the block, warnings of Python and log records (WARNING and above) of `libraries` go
    into the list that it gives, each text once, and nowhere else. The list is complete when the
    block is left."""
    texts: list[str] = []
    collector = _Collector(texts)
    before = []
    _forget_said_once()
    for name in libraries:
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate, logger.handlers[:]))
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.handlers[:] = [collector]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield texts
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers
        texts += [one_line(str(warning.message)) for warning in caught]
        texts[:] = dict.fromkeys(texts)


def _forget_said_once() -> None:
    """transformers says some things once a process; a second model must hear them again."""
    clear = getattr(getattr(logging.Logger, "warning_once", None), "cache_clear", None)
    if clear is not None:
        clear()
