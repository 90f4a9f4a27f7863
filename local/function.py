"""What template.yaml says of one function, resolved: what an execution environment is made from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# A name, a partial ARN or an ARN, each with or without a qualifier.
_NAME = re.compile(r"(?:arn:[^:]+:lambda:[^:]*:)?(?:\d{12}:)?(?:function:)?([\w-]+)(?::[\w$-]+)?")


@dataclass(frozen=True)
class Function:
    name: str  # the physical name, for Invoke
    logical_id: str  # in template.yaml
    code: Path
    handler: str
    timeout: int  # seconds
    memory: int  # MB
    runtime: str  # python3.13; here it is run by whichever Python runs the stack
    layers: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    log_format: str = "Text"

    @property
    def folder(self) -> str:
        """Its name among people: functions/<folder>."""
        return self.code.name


def name_in(reference: str) -> str:
    """The name in an ARN; what is none stays as it is."""
    found = _NAME.fullmatch(reference)
    return found[1] if found else reference
