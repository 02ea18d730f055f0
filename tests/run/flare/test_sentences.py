"""A party's console has FedShield's lines and none of FLARE's."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fedshield.run.flare import sentences


def kit_of_site(folder: Path) -> Path:
    local = folder / "flare" / "local"
    local.mkdir(parents=True)
    (folder / "flare" / "startup").mkdir()
    (folder / "flare" / "startup" / "fed_client.json").write_text("{}")
    default = {
        "version": 1,
        "formatters": {},
        "handlers": {"consoleHandler": {}, "logFileHandler": {}},
        "loggers": {"root": {"level": "INFO", "handlers": ["consoleHandler", "logFileHandler"]}},
    }
    (local / "log_config.json.default").write_text(json.dumps(default))
    return folder


def test_flares_lines_go_to_its_files_only(tmp_path: Path) -> None:
    kit = kit_of_site(tmp_path)
    sentences.write_log_config(kit)
    config = json.loads((kit / "flare" / "local" / "log_config.json").read_text())
    assert config["loggers"]["root"]["handlers"] == ["logFileHandler", "connection"]
    assert config["loggers"]["fedshield"]["handlers"] == ["console", "fedshield"]
    assert config["handlers"]["fedshield"]["filename"] == str(kit / "fedshield.log")
    assert config["handlers"]["connection"]["()"] == "fedshield.run.flare.sentences.Connection"


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("nvflare", logging.INFO, __file__, 1, text, None, None)


def test_a_connection_that_comes_and_goes_is_told_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fedshield")
    handler = sentences.Connection(str(tmp_path))
    of_a_run = sentences.Connection(str(tmp_path))  # the kit is held: it stays silent
    for text in (
        "Retrying [CH00001 ACTIVE grpc://server:8502] in 1 seconds",
        "Retrying [CH00001 ACTIVE grpc://server:8502] in 2 seconds",
        "Successfully registered client:north for project ward-notes.",
        "a word about something else",
    ):
        handler.emit(record(text))
        of_a_run.emit(record(text))
    handler.close()
    of_a_run.close()
    assert [entry.getMessage() for entry in caplog.records] == [
        "no connection to the server; trying again until it answers",
        "connected to the server",
    ]
    assert json.loads((tmp_path / sentences.CONNECTION_FILE).read_text())["connected"] is True
