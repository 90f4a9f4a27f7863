"""An invocation as a person at a terminal reads it: a line, and under it what went wrong."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from local.log_stream import Report

MARGIN = " " * 10
ALARMING = {"WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"}
WELL = {"ok", "throttled"}


def summary(folder: str, request_id: str, status: str, milliseconds: float, report: Report) -> str:
    """`milliseconds` is what the caller has waited, for an invocation that left no report."""
    fields = [f"{status:<9}", f"{milliseconds if report.duration is None else report.duration:7.0f} ms"]
    if report.init is not None:
        fields.append(f"init {report.init:.0f} ms")
    if report.memory is not None:
        fields.append(f"{report.memory} MB")
    hint = "" if status in WELL else f"   → make logs F={folder}"
    return f"{time.strftime('%H:%M:%S')}  {folder:<18} {request_id}  {'  '.join(fields)}{hint}"


def troubles(lines: Iterable[str]) -> list[str]:
    """What of a function's output is a warning or worse, with its traceback, indented."""
    told: list[str] = []
    for line in lines:
        record = _record(line)
        if record and str(record.get("level", "")).upper() in ALARMING:
            told.extend(_indented(_readable(record)))
        elif line.startswith("[ERROR]"):  # awslambdaric's text format, its line ends carriage returns
            told.extend(_indented(line.removeprefix("[ERROR] ").replace("\r", "\n").replace("\xa0", " ")))
    return told


def readable(line: str) -> list[str]:
    """Any line of a log: the message of a JSON object with its traceback, other text as it is."""
    record = _record(line)
    return _indented(_readable(record) if record else line.replace("\r", "\n").replace("\xa0", " "))


def _record(line: str) -> Mapping[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _readable(record: Mapping[str, Any]) -> str:
    """Of awslambdaric's record of an exception, or of a logger's."""
    if "errorType" in record:
        head = f"{record['errorType']}: {record.get('errorMessage', '')}"
        trace = record.get("stackTrace") or []
        return "\n".join([head, *(str(each).rstrip("\n") for each in trace)])
    level, message = record.get("level", ""), record.get("message", "")
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    head = f"{level} {text}".strip() or json.dumps(record, ensure_ascii=False)
    trace = record.get("exception") or record.get("exc_info") or ""
    return f"{head}\n{trace}".rstrip("\n") if isinstance(trace, str) else head


def _indented(text: str) -> list[str]:
    return [f"{MARGIN}{'  ' if number else ''}{line}" for number, line in enumerate(text.splitlines())]
