#!/usr/bin/env python3
"""Submits a job for each line of stdin over HTTP, and prints what became of each, in the order of the lines.

    printf '%s\\n' one two three | HARNESS_URL=http://127.0.0.1:8080 examples/publish.py echo

HARNESS_API_KEY has the key. The client is `clients/python/harness_fleet.py`; copy it beside your program.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "clients/python"))
from harness_fleet import Client  # noqa: E402


def main():
    agent, fleet = sys.argv[1], Client()
    # Sent in groups as they are read. The client makes the ids, and so an outage costs no job and makes no double.
    jobs = ({"agent_id": agent, "input": line.rstrip("\n")} for line in sys.stdin)
    failed = False
    for answer in list(fleet.batch(jobs)):
        if answer["status"] not in (200, 202):
            print(json.dumps({"refused": answer["problem"]["detail"]}))
            failed = True
            continue
        job = fleet.wait(answer["job_id"])
        print(json.dumps({"job_id": job["job_id"], "state": job["state"], "output": job.get("output")}))
        failed = failed or job["state"] != "succeeded"
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
