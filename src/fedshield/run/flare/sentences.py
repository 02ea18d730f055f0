"""What a party's process says where it was started: FedShield's lines, and none of FLARE's.

FLARE's own log goes to files in the kit's `flare/` (`log.txt`; of a run, in its folder there).
FedShield's lines also go to `fedshield.log` in the kit. FLARE reads both rules from its logging
configuration, in the party's process and in that of each run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import IO, Any

from fedshield.disk import write_atomic
from fedshield.errors import UserError
from fedshield.run import presence

LOG_FILE = "fedshield.log"
#: Whether a site's process is connected to the server, and since when.
CONNECTION_FILE = "connection.json"
#: Longest that somebody who looks whether a process runs can keep its lock, in seconds.
LOOK_S = 0.5
_LOG = logging.getLogger("fedshield")


class Connection(logging.Handler):
    """Tells of a site's connection to the server when it comes and when it goes, once each. FLARE
    says so in its log only."""

    def __init__(self, kit: str) -> None:
        super().__init__(logging.INFO)
        self._kit = Path(kit)
        self._connected: bool | None = None
        # The party's process comes first and holds its kit. That of a run finds it held, and has
        # no connection of its own to tell of. The patience is for `status`, which looks for a
        # moment.
        self._lock: IO[str] | None = None
        with contextlib.suppress(UserError):
            self._lock = presence.hold(self._kit, patience_s=LOOK_S)
            (self._kit / CONNECTION_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lock is None:
            return
        text = record.getMessage()
        if text.startswith("Successfully registered client:"):
            self._tell(True, "connected to the server")
        elif text.startswith("Retrying [") and "ACTIVE" in text:
            self._tell(False, "no connection to the server; trying again until it answers")

    def _tell(self, connected: bool, text: str) -> None:
        if self._connected is not connected:
            self._connected = connected
            _LOG.info(text)
            state = {"connected": connected, "since": time.time()}
            write_atomic(self._kit / CONNECTION_FILE, json.dumps(state) + "\n")


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
        config["handlers"]["connection"] = {
            "()": f"{__name__}.{Connection.__name__}",
            "kit": str(kit.resolve()),
        }
        root["handlers"].append("connection")
    write_atomic(local / "log_config.json", json.dumps(config, indent=2) + "\n")
