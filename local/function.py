"""What template.yaml says of one function, resolved: what an execution environment is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Function:
    name: str  # the physical name, for Invoke
    logical_id: str  # in template.yaml
    code: Path
    handler: str
    timeout: int  # seconds
    memory: int  # MB
    layers: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    log_format: str = "Text"

    @property
    def folder(self) -> str:
        """Its name among people: functions/<folder>."""
        return self.code.name
