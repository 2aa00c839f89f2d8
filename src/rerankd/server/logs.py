"""Logs as lines of text, as uvicorn writes them, or one JSON object a line; with the id of the call in either."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import AccessFormatter

from rerankd.server.called import request_id
from rerankd.server.lines import LineHandler, Lines

LogFormat: TypeAlias = Literal["text", "json"]

ACCESS = "rerankd.access"
"""The logger of a line for each call, whose arguments are those of uvicorn's own."""

SAID, SAID_OF_ERRORS = "rerankd.said", "rerankd.said.error"
"""The loggers of messages that are shown at any level, on standard output and standard error."""

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: its message, and every field in its `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message and the traceback hold."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (id := request_id.get()) is not None:
            line["request_id"] = id
        line.update({name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str)


class AccessTextFormatter(AccessFormatter):
    """uvicorn's line for a call, and the call's id."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{super().formatMessage(record)} id={getattr(record, 'request_id', None)}"


def logging_config(level: str, format: LogFormat = "text", access: bool = True) -> dict[str, Any]:
    """uvicorn's own logging, with rerankd's beside it, for `logging.config.dictConfig`. No line is ever waited for.

    level: one of uvicorn's; it has one below DEBUG that logging itself has no name for
    access: whether each call gets a line
    """
    our_level, uvicorn_level = ("DEBUG", 5) if level == "trace" else (level.upper(), level.upper())
    plain = {"()": "logging.Formatter", "fmt": "%(message)s"}
    config = {**LOGGING_CONFIG, "formatters": {**LOGGING_CONFIG["formatters"], "plain": plain}}
    note = JsonFormatter() if format == "json" else logging.Formatter("%(levelname)s:  %(message)s")
    out, err = Lines(sys.stdout, note), Lines(sys.stderr, note)
    config["handlers"] = {
        "default": {"()": LineHandler, "lines": err, "formatter": "default"},
        "access": {"()": LineHandler, "lines": out, "formatter": "access"},
        "said": {"()": LineHandler, "lines": out, "formatter": "plain"},
        "said of errors": {"()": LineHandler, "lines": err, "formatter": "plain"},
    }
    config["loggers"] = {name: {**values, "level": uvicorn_level} for name, values in LOGGING_CONFIG["loggers"].items()}
    config["loggers"]["rerankd"] = {"handlers": ["default"], "level": our_level, "propagate": False}
    config["loggers"][ACCESS] = {
        "handlers": ["access"],
        "level": our_level if access else "CRITICAL",
        "propagate": False,
    }
    config["loggers"][SAID] = {"handlers": ["said"], "propagate": False}
    config["loggers"][SAID_OF_ERRORS] = {"handlers": ["said of errors"], "propagate": False}
    if format == "text":
        config["formatters"]["access"] = {**config["formatters"]["access"], "()": AccessTextFormatter}
    else:
        # The lines of other libraries must be JSON too.
        config["root"] = {"handlers": ["default"], "level": "WARNING"}
        config["formatters"] = {name: {"()": JsonFormatter} for name in config["formatters"]}
    return config
