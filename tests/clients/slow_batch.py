#!/usr/bin/env python3
"""Submits three jobs by `clients/python/harness_fleet.py`, two of them in one request, and prints the status of each answer.

    slow_batch.py RETRY_FOR_S READ_FOR_S

It takes so many seconds to read the first job, and the third one.
"""

import sys
import time

from harness_fleet import Client

retry_for_s, read_for_s = float(sys.argv[1]), float(sys.argv[2])


def jobs():
    for n in range(3):
        if n != 1:
            time.sleep(read_for_s)
        yield {"agent_id": "echo", "input": n}


for answer in Client(retry_for_s=retry_for_s).batch(jobs(), group=2):
    print(answer["status"], flush=True)
