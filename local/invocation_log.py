"""An invocation's log as Lambda prints it, the last of which Invoke's LogResult has."""

import base64
import math

from local.log_stream import Report

TAIL = 4096  # bytes


def log_result(request_id: str, report: Report, memory: int) -> str:
    """The last 4 KB, in base64. The frame is text, whatever the function's log format."""
    lines = [
        f"START RequestId: {request_id} Version: $LATEST",
        *report.lines,
        f"END RequestId: {request_id}",
        _report(request_id, report, memory),
    ]
    log = "".join(f"{line}\n" for line in lines).encode()
    return base64.b64encode(log[-TAIL:]).decode()


def _report(request_id: str, report: Report, memory: int) -> str:
    fields = [f"REPORT RequestId: {request_id}"]
    if report.duration is not None:
        fields.append(f"Duration: {report.duration:.2f} ms")
        fields.append(f"Billed Duration: {math.ceil(report.duration)} ms")
    fields.append(f"Memory Size: {memory} MB")
    if report.memory is not None:
        fields.append(f"Max Memory Used: {report.memory} MB")
    if report.init is not None:
        fields.append(f"Init Duration: {report.init:.2f} ms")
    return "\t".join([*fields, ""])
