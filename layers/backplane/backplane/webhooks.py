"""The HTTP edge of webhook functions: verify, record, answer. No router, so that they start fast."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, inbox, outbox, requests
from backplane.inbox import Event
from backplane.problems import Internal, Problem
from backplane.senders import SENDERS

Handler = Callable[[dict[str, Any], LambdaContext], dict[str, Any]]
Verify = Callable[[Mapping[str, Any], bytes], Event]

logger = Logger()


def lambda_handler(verify: Verify) -> Handler:
    """A Lambda handler that takes what `verify` lets through.

    `verify(event, body)` gets the gateway's event and the body's raw bytes, and answers the verified
    event or raises InvalidSignature, InvalidPayload.
    """

    @logger.inject_lambda_context(clear_state=True)
    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        db.set_deadline(context.get_remaining_time_in_millis() / 1000)
        request_id = requests.request_id(event)
        logger.set_correlation_id(request_id)  # finding it by JMESPath is a sixth of what we compute
        try:
            received = verify(event, requests.raw_body(event))
            status = inbox.receive(received, SENDERS)
        except Problem as problem:
            logger.warning("webhook refused", code=problem.code, detail=problem.detail)
            return problem.response(request_id)
        except Exception:  # the edge: the sender hears 500 and sends again
            logger.exception("webhook failed")
            return Internal().response(request_id)
        outbox.poke()
        logger.info("webhook received", event_id=received.id, event_type=received.type, status=status)
        return {
            "statusCode": 200,
            "headers": {"content-type": "application/json", "x-request-id": request_id},
            "body": json.dumps({"status": status, "event_id": received.id}),
            "isBase64Encoded": False,
        }

    return handler
