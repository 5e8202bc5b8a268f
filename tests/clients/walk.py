#!/usr/bin/env python3
"""Walks through `clients/python/harness_fleet.py` on a real API: HARNESS_URL and HARNESS_API_KEY name it and its key.

The tenant has one job that failed, whose agent there is since then. Every check is an assertion.
"""

import sys
import time
from datetime import datetime, timedelta, timezone

from harness_fleet import Client, Problem, new_job_id

fleet = Client()

# Submit, read, wait.
job = fleet.submit("echo", {"any": "json"}, session_id="hello")
assert job["session_id"] == "hello" and job["state"] == "publishing", job
job = fleet.wait(job["job_id"])
assert (job["state"], job["output"]) == ("succeeded", {"any": "json"}), job
assert fleet.get(job["job_id"]) == job, fleet.get(job["job_id"])
assert fleet.why(job["job_id"]).startswith("succeeded"), fleet.why(job["job_id"])

# The end with the submission; and the same job under the same id, which is accepted once.
mine = new_job_id()
first = fleet.submit("echo", "ä\u2028\n", job_id=mine, wait_s=30)
assert (first["state"], first["output"]) == ("succeeded", "ä\u2028\n"), first
again = fleet.submit("echo", "ä\u2028\n", job_id=mine)
assert (again["state"], again["accepted_at"]) == ("succeeded", first["accepted_at"]), again

# A job that takes long is waited for as long as one wants, and cancelled.
long = fleet.submit("scripted", {"count": 1, "delay_ms": 600_000})
try:
    fleet.wait(long["job_id"], timeout_s=1.2)
    sys.exit("it ended")
except TimeoutError as error:
    assert long["job_id"] in str(error), error
fleet.cancel(long["job_id"])
assert fleet.wait(long["job_id"])["state"] == "cancelled"

# A job that asks is answered once; the same answer again changes nothing.
asking = fleet.submit("scripted", {"iterations": [{"ask": {"call_id": "c1", "question": {"n": 1}}}]})
for event in fleet.follow(asking["job_id"]):
    if event.name == "state" and event.data["state"] == "awaiting_input":
        assert event.data["questions"][0]["question"] == {"n": 1}, event
        break
question = fleet.get(asking["job_id"])["questions"][0]
assert (question["call_id"], question["kind"], question["question"]) == ("c1", "question", {"n": 1}), question
assert fleet.answer(asking["job_id"], "c1", None, by="Ada")["job_id"] == asking["job_id"]
assert fleet.wait(asking["job_id"])["state"] == "succeeded"

# A batch from an iterator, whose groups are sent as they are read; each job has its answer, in order.
jobs = ({"agent_id": "echo" if n % 10 else 7, "session_id": "batch", "input": n} for n in range(100))
answers = list(fleet.batch(jobs, group=30))
assert [answer["status"] for answer in answers] == [202 if n % 10 else 422 for n in range(100)], answers
assert answers[0]["problem"]["field"] == "agent_id", answers[0]
assert fleet.wait(answers[-1]["job_id"])["output"] == 99

# What cannot be written as JSON ends the batch; what was read before is accepted.
given = iter([{"agent_id": "echo", "input": 1}, {"agent_id": "echo", "input": float("nan")}])
accepted = []
try:
    accepted.extend(fleet.batch(given))
    for answer in fleet.batch([]):
        sys.exit(f"nothing was submitted: {answer}")
    sys.exit("NaN is no JSON")
except ValueError:
    pass

# Lists, page by page.
of_batch = list(fleet.jobs(session="batch", limit="7"))
assert len(of_batch) == 90 and [job["job_id"] for job in of_batch] == sorted(
    (answer["job_id"] for answer in answers if answer["status"] == 202), reverse=True
), of_batch
assert {job["state"] for job in fleet.jobs(state=["cancelled", "failed"])} == {"cancelled", "failed"}
labelled = fleet.submit("echo", labels={"team": "search", "run": "7"})
assert labelled["labels"] == {"team": "search", "run": "7"}, labelled
fleet.submit("echo", labels={"team": "search", "run": "8"}, max_cost_usd="0.25", max_iterations=7, max_tokens=9_000)
assert len(list(fleet.jobs(labels={"team": "search"}))) == 2
found = list(fleet.jobs(labels={"team": "search", "run": "7"}))
assert [job["job_id"] for job in found] == [labelled["job_id"]], found
assert list(fleet.dead(labels={"team": "search"})) == []
assert fleet.spend() == [] and fleet.spend("agent", "model", days=7) == []
fleet.wait(labelled["job_id"])
assert "hello" in [session["session_id"] for session in fleet.sessions()]
assert fleet.session("hello")["jobs"] == 1, fleet.session("hello")
updated = fleet.session("hello")["last_updated"]
assert "hello" in [session["session_id"] for session in fleet.sessions(agent="echo", updated_since=updated)]
assert "hello" not in [session["session_id"] for session in fleet.sessions(updated_before=updated)]

# Dead letters, and one of them again.
dead = list(fleet.dead())
assert [job["code"] for job in dead] == ["unknown_agent"], dead
renewed = fleet.redrive(dead[0]["job_id"])
assert renewed["job_id"] != dead[0]["job_id"], renewed
assert [event.name for event in fleet.follow(renewed["job_id"])][-1] == "end"
fleet.wait(renewed["job_id"])
fleet.drop(renewed["job_id"])
assert list(fleet.dead()) == []
fleet.empty_session("hello")


def refused(status, field, call):
    """Expects a problem document."""
    try:
        call()
    except Problem as problem:
        assert (problem.status, problem.field) == (status, field), problem
        assert problem.type.startswith("urn:harness:") and problem.detail, problem.document
        return problem
    raise AssertionError("no problem")


# Schedules: one that fires once and soon, and one that is paused, resumed and removed before it fires.
soon = datetime.now(timezone.utc) + timedelta(seconds=10)
once = fleet.make_schedule("once", {"agent_id": "echo", "input": "by the clock"}, at=soon.isoformat())
assert once["fired"] == 0 and once["job"]["agent_id"] == "echo", once
yearly = fleet.make_schedule("yearly", {"agent_id": "echo"}, cron="0 8 1 1 *", zone="Europe/Berlin", overlap="skip")
assert (yearly["cron"], yearly["zone"], yearly["overlap"]) == ("0 8 1 1 *", "Europe/Berlin", "skip"), yearly
assert [schedule["name"] for schedule in fleet.schedules()] == ["once", "yearly"]
firings = fleet.next_firings("yearly", 3)
assert len(firings) == 3 and all("-01-01T08:00:00+01:00" in firing["local"] for firing in firings), firings
assert "paused_at" in fleet.pause_schedule("yearly") and "paused_at" not in fleet.resume_schedule("yearly")
refused(409, "name", lambda: fleet.make_schedule("yearly", {"agent_id": "echo"}, cron="0 8 1 1 *"))
refused(422, "cron", lambda: fleet.make_schedule("never", {"agent_id": "echo"}, cron="0 0 31 2 *"))
fleet.remove_schedule("yearly")
refused(404, None, lambda: fleet.schedule("yearly"))
deadline = time.monotonic() + 30
while fleet.schedule("once")["fired"] == 0:
    assert time.monotonic() < deadline, fleet.schedule("once")
    time.sleep(0.1)
made = fleet.wait(fleet.schedule("once")["last_job"], timeout_s=30)
assert (made["state"], made["output"], made["labels"]) == ("succeeded", "by the clock", {"schedule": "once"}), made

refused(409, None, lambda: fleet.redrive(dead[0]["job_id"]))
refused(409, None, lambda: fleet.cancel(renewed["job_id"]))
refused(404, None, lambda: fleet.get(new_job_id()))
refused(404, None, lambda: fleet.session("nowhere"))
refused(422, "agent_id", lambda: fleet.submit("a b"))
refused(422, "memroy", lambda: list(fleet.jobs(memroy="7")))
assert mine in str(refused(409, "job_id", lambda: fleet.submit("scripted", job_id=mine)))
key = "hfk_" + "0" * 60
assert key not in str(refused(401, "authorization", lambda: Client(key=key).get(mine)))

# A key is shown nowhere, and a wrong address at once.
for wrong in ({"key": "a\nb"}, {"url": "ftp://x"}, {"url": "http://u:p@x"}, {"url": "fleet.example.com"}):
    try:
        Client(**wrong)
        sys.exit(f"{wrong} was taken")
    except ValueError as error:
        assert "a\nb" not in str(error), error
print("walked")
