"""What two or more of Backplane's functions share."""

import logging
import os

# Where the runtime's own level is DEBUG, botocore would write whole answers down, secrets among them; at INFO
# the Stripe SDK tells of keys that are refused.
for _library in ("boto3", "botocore", "s3transfer", "urllib3", "stripe", "psycopg"):
    logging.getLogger(_library).setLevel(logging.WARNING)
logging.getLogger("backplane").setLevel(os.environ.get("LOG_LEVEL") or logging.INFO)
