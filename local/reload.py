"""A changed template takes effect while the stack runs. (Changed code does so in local.pool.)

Each request looks at the file first, and twice a second so does a thread, for what no request waits for.
A template that can't be applied changes nothing, and the terminal says why.
"""

import json
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from local.application import Application
from local.async_invoke import AsynchronousInvocations
from local.deliveries import Deliveries
from local.gateway import Gateway
from local.intrinsics import Resource
from local.refusal import Refusal
from local.running import Stack
from local.runtime import Runtime
from local.sources import Sources
from local.terminal import say
from local.wiring import Wiring

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INTERVAL = 0.5  # seconds


@dataclass
class Live:
    """What runs of a template, each part to be brought up to it."""

    read: Callable[[], tuple[Application, Wiring]]  # raises Refusal
    runtime: Runtime
    gateway: Gateway
    asynchronous: AsynchronousInvocations
    deliver: Callable[[list[Resource]], Deliveries]  # raises Refusal
    triggers: list[Resource]
    stack_file: Path
    deliveries: Deliveries | None = None

    def start(self) -> None:
        """Raises Refusal."""
        self.deliveries = self.deliver(self.triggers)
        self.deliveries.start()

    def stop(self) -> None:
        if self.deliveries:
            self.deliveries.stop()

    def apply(self) -> None:
        """Raises Refusal."""
        app, wired = self.read()
        self.asynchronous.replace(app.triggers)
        self.runtime.replace(wired.functions)
        self.gateway.api = app.api
        if app.triggers != self.triggers:
            deliveries = self.deliver(app.triggers)
            self.stop()
            self.deliveries, self.triggers = deliveries, app.triggers
            deliveries.start()
        if self.stack_file.exists():
            stack = Stack(**json.loads(self.stack_file.read_text()))
            names = {each.folder: each.name for each in wired.functions}
            replace(stack, functions=names).write(self.stack_file)


class Reload:
    """Looks at the template from now on, and applies its changes once started."""

    def __init__(self, template: Path) -> None:
        self._template = template
        self._apply: Callable[[], None] | None = None
        self._sources = Sources([template])
        self._applied = self._sources.edition()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self, apply: Callable[[], None]) -> None:
        """`apply` raises Refusal where the template can't be applied."""
        self._apply = apply
        threading.Thread(target=self._watch, name="reload", daemon=True).start()

    def stop(self) -> None:
        """What is being applied is applied to its end."""
        self._stopped.set()
        with self._lock:
            pass

    def before(self, app: "WSGIApplication") -> "WSGIApplication":
        """The application, with a look at the template before each request."""

        def looking(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            self.look()
            return app(environ, start_response)

        return looking

    def look(self) -> None:
        """Apply the template if it has changed; requests that come meanwhile wait for that."""
        if self._apply is None or (edition := self._sources.edition()) == self._applied:
            return
        with self._lock:
            if edition <= self._applied or self._stopped.is_set() or not self._is_there():
                return
            name = self._template.name
            try:
                self._apply()
                say(f"{name} has changed and is applied.")
            except Refusal as refusal:
                say(f"{name} has changed and is not applied, what was before goes on: {refusal}")
            except Exception:  # noqa: BLE001  what SAM and moto make of a broken template is theirs to choose
                say(f"{name} has changed and can't be applied; restart `make dev`.\n{traceback.format_exc()}")
            self._applied = edition

    def _is_there(self) -> bool:
        """Not while an editor has emptied it, or put it aside to put another in its place."""
        try:
            return self._template.stat().st_size > 0
        except FileNotFoundError:
            return False

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self.look()
