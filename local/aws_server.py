"""The process that plays AWS: moto's server on a listening socket that the stack has bound.

python -m local.aws_server DESCRIPTOR [FOLDER]: with a folder, S3 objects and KMS keys are kept in it.
"""

import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from local import aws_bus, aws_gaps
from local.aws_store import Store
from local.ports import HOST
from local.state import State


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stack ends us, after the functions
    signal.signal(signal.SIGTERM, _stop)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line a request
    aws_gaps.mend()
    aws_bus.replace_delivery()
    store = Store(State(Path(sys.argv[2]))) if len(sys.argv) > 2 else None  # noqa: PLR2004  the folder
    if store:
        store.attach()
        store.follow()
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(HOST, 0, app, threaded=True, request_handler=MotoRequestHandler, fd=int(sys.argv[1]))
    try:
        server.serve_forever()
    finally:
        if store:
            store.save()


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit()


if __name__ == "__main__":
    main()
