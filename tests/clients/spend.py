#!/usr/bin/env python3
"""Sums up model calls by agent and user by `clients/python/harness_fleet.py`, and prints each sum as JSON."""

import json

from harness_fleet import Client

for row in Client().spend("agent", "user", days=31):
    print(json.dumps(row))
