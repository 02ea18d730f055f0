"""What a party's process says where it was started: FedShield's lines, and none of FLARE's.

FLARE's own log goes to files in the kit's `flare/` (`log.txt`; of a run, in its folder there).
FedShield's lines also go to `fedshield.log` in the kit. FLARE reads both rules from its logging
configuration, in the party's process and in that of each run.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from fedshield.runfolder import write_atomic

LOG_FILE = "fedshield.log"
_LOG = logging.getLogger("fedshield")


class Connection(logging.Handler):
    """Tells of a site's connection to the server when it comes and when it goes, once each. FLARE
    says so in its log only."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._connected: bool | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Successfully registered client:"):
            self._tell(True, "connected to the server")
        elif text.startswith("Retrying [") and "ACTIVE" in text:
            self._tell(False, "no connection to the server; trying again until it answers")

    def _tell(self, connected: bool, text: str) -> None:
        if self._connected is not connected:
            self._connected = connected
            _LOG.info(text)


def write_log_config(kit: Path) -> None:
    """FLARE's logging configuration of this kit, from FLARE's default one."""
    local = kit / "flare" / "local"
    default = local / "log_config.json.default"
    config: dict[str, Any] = json.loads(default.read_text(encoding="utf-8"))
    root = config["loggers"]["root"]
    root["handlers"] = [name for name in root["handlers"] if name != "consoleHandler"]
    config["formatters"]["fedshield"] = {
        "format": "%(asctime)s  %(message)s",
        "datefmt": "%Y-%m-%d %H:%M:%S",
    }
    console = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    # Two processes write to it at once, so it is appended to and not turned over.
    file = {"class": "logging.FileHandler", "filename": str(kit.resolve() / LOG_FILE), "mode": "a"}
    config["handlers"] |= {
        "console": console | {"formatter": "fedshield", "level": "INFO"},
        "fedshield": file | {"formatter": "fedshield", "level": "INFO"},
    }
    config["loggers"]["fedshield"] = {"level": "INFO", "handlers": ["console", "fedshield"]}
    if (kit / "flare" / "startup" / "fed_client.json").exists():
        config["handlers"]["connection"] = {"()": f"{__name__}.{Connection.__name__}"}
        root["handlers"].append("connection")
    write_atomic(local / "log_config.json", json.dumps(config, indent=2) + "\n")
