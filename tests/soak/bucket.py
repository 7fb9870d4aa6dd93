"""A bucket for the store of a soak, behind a server that fails."""

import contextlib
import os
import random
from collections import Counter

import boto3

from pipeline.source_settings import S3Access
from tests.s3_server import Fault, FaultyProxy, dropped, refusal, running_server

# of the wall clock, so there are few
SLOW_S, SLOW_SHARE, MOST_SLOW = 10.0, 0.005, 12


@contextlib.contextmanager
def failing_bucket(seed: int, share: float = 0.05):
    """Settings of a store in a bucket whose server fails that share of the calls, and answers some after ten seconds.

    It fails by errors, and connections that end. Whoever waits gives up before a late answer comes, and asks again.
    """
    rng, counts = random.Random(seed), Counter[str]()
    failures = (refusal("InternalError", 500), refusal("SlowDown", 503), dropped)

    def choose(method: str, path: str) -> Fault:
        counts["calls"] += 1
        if counts["slow"] < MOST_SLOW and rng.random() < SLOW_SHARE:
            counts["slow"] += 1
            return SLOW_S
        return rng.choice(failures) if rng.random() < share else "pass"

    with running_server() as endpoint, contextlib.closing(FaultyProxy(endpoint)) as proxy:
        os.environ.update(AWS_ACCESS_KEY_ID="soak", AWS_SECRET_ACCESS_KEY="soak")
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="soak")
        proxy.choose = choose
        access = S3Access(endpoint_url=proxy.endpoint, timeout_s=5)
        yield {"store": "s3://soak/root", "s3": access}, counts
