#!/usr/bin/env python3
"""Submits so many jobs of one session by `clients/python/harness_fleet.py`, and prints the id of each answer."""

import sys

from harness_fleet import Client

count = int(sys.argv[1])
jobs = ({"agent_id": "echo", "session_id": "batch", "input": n} for n in range(count))
for answer in Client().batch(jobs, group=250):
    assert answer["status"] in (200, 202), answer
    print(answer["job_id"], flush=True)
