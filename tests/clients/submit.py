#!/usr/bin/env python3
"""Submits a job of an agent by `clients/python/harness_fleet.py`, and prints its id."""

import sys

from harness_fleet import Client

print(Client().submit(sys.argv[1])["job_id"])
