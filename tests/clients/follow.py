#!/usr/bin/env python3
"""Follows a job by `clients/python/harness_fleet.py`, and prints the name and the id of each event.

    follow.py JOB [RETRY_FOR_S]
"""

import sys

from harness_fleet import Client, Problem

try:
    for event in Client(retry_for_s=float(([*sys.argv, "60"])[2])).follow(sys.argv[1]):
        print(event.name, event.id, flush=True)
except Problem as problem:
    print("refused", problem.status)
