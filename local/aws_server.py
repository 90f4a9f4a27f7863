"""The process that plays AWS: moto's server on a listening socket that the stack has bound.

python -m local.aws_server DESCRIPTOR
"""

import logging
import signal
import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from local.ports import HOST


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stack ends us, after the functions
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line a request
    descriptor = int(sys.argv[1])
    app = DomainDispatcherApplication(create_backend_app)
    make_server(
        HOST, 0, app, threaded=True, request_handler=MotoRequestHandler, fd=descriptor
    ).serve_forever()


if __name__ == "__main__":
    main()
