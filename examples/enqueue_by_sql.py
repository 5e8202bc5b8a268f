#!/usr/bin/env python3
"""Enqueues a job in the same transaction in which a service writes its own row: both are there, or neither is.

    pip install 'psycopg[binary]'
    DATABASE_URL=postgres://SERVICE:PASSWORD@HOST/DATABASE examples/enqueue_by_sql.py

The role in the address needs a tenant: `producer roles add SERVICE`. The table `orders` stands for the service's own.
Prints the job's id, by which `producer status` and `GET /v1/jobs/ID` find it from the commit on.
"""

import json
import os

import psycopg

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    # `with` commits at its end, and rolls back if there is an exception.
    with connection.transaction():
        connection.execute("INSERT INTO orders (id) VALUES (%s)", (1,))
        job = {"agent_id": "echo", "session_id": "order-1", "input": {"order": 1}}
        row = connection.execute("SELECT harness_enqueue(%s::json)", (json.dumps(job),)).fetchone()
print(row[0])
