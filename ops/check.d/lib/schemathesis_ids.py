"""Makes something of every kind through the API, and writes which ids schemathesis takes for which route.

schemathesis_ids.py API [KEY] >>schemathesis.toml

A worker has to run. What a route ends or deletes is made for that route alone, so that the others still find theirs.
"""
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

API, KEY = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
# How often an id that exists is taken, where there is one.
OFTEN = 0.8
SOME = 6


def ask(method, path, body=None, **headers):
    if KEY:
        headers["authorization"] = f"Bearer {KEY}"
    if body is not None:
        headers["content-type"] = "application/json"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{API}{path}", data, headers, method=method), timeout=90) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {path} {body}: {error.code} {error.read().decode()}")


def submit(agent="echo", ended=False, **job):
    answer = ask("POST", "/v1/jobs", {"agent_id": agent, **job}, **({"prefer": "wait=60"} if ended else {}))
    return answer["job_id"]


def scripted(input, **job):
    return submit("scripted", input=input, **job)


def until(state, ids):
    deadline = time.monotonic() + 60
    for job_id in ids:
        while (now := ask("GET", f"/v1/jobs/{job_id}")["state"]) != state:
            if time.monotonic() > deadline:
                sys.exit(f"job {job_id} is {now} after 60 s, expected {state}")
            time.sleep(0.05)
    return ids


def running(**job):
    return scripted({"count": 1000, "delay_ms": 60_000}, **job)


def asking(**job):
    ask_for = [{"say": "before", "cost_usd": 0.5}, {"ask": {"call_id": "c1", "question": "Which one?"}}]
    return scripted({"iterations": ask_for}, **job)


def failed(**job):
    return submit("nobody", ended=True, **job)


def name_of(job_id):
    return ask("GET", f"/v1/jobs/{job_id}")["session_id"]


labels = {"team": "search"}
worked = [scripted({"count": 3}, ended=True, labels=labels, session_id="seen", limits=["customer-17"]) for _ in range(SOME)]
dead = [failed(labels=labels) for _ in range(SOME)]
runs = until("running", [running(labels=labels) for _ in range(SOME)])
asks = until("awaiting_input", [asking() for _ in range(SOME)])
blocked = [submit(session_id=name_of(runs[0]), labels=labels)]
scheduled = [submit(delay_ms=3_600_000, labels=labels)]
# A tenant may have few webhooks, and an earlier look has made some.
for kind, name in [("webhooks", "id"), ("schedules", "name")]:
    for one in ask("GET", f"/v1/{kind}?limit=500")["items"]:
        ask("DELETE", f"/v1/{kind}/{urllib.parse.quote(one[name], safe='')}")
# An end that a webhook has to send, and can't.
for path in ["ends", "tests", "more"]:
    ask("POST", "/v1/webhooks", {"url": f"http://127.0.0.1:9/{path}"})
ended = submit(ended=True, labels=labels)
for number in range(2 * SOME):
    hour = {"name": f"hourly-{number}", "cron": "0 * * * *", "zone": "Europe/Berlin", "job": {"agent_id": "echo"}}
    ask("POST", "/v1/schedules", hour)
    ask("POST", "/v1/limits", {"key": f"customer-{number}", "max": 3})
hooks = [hook["id"] for hook in ask("GET", "/v1/webhooks?limit=500")["items"]]
gone = [ask("POST", "/v1/webhooks", {"url": "http://127.0.0.1:9/gone", "states": ["cancelled"]})["id"] for _ in range(SOME)]
jobs = [*worked[:2], *dead[:2], *runs[:2], *asks[:2], *blocked, *scheduled, ended]
sessions = ["seen", *map(name_of, [dead[0], runs[0], asks[0], ended])]
words = {"session": sessions, "agent": ["echo", "scripted", "nobody"], "pool": ["default"], "label": ["team=search", "team=none"]}


def cursors(path):
    page = ask("GET", f"{path}?limit=1")
    return [page["next"]] if page.get("next") else []


# The bindings of each route: a parameter, and the values it takes.
ROUTES = {
    "GET /v1/jobs/{id}": {"path.id": jobs, "header.Prefer": ["wait=0", "wait=1"]},
    "GET /v1/jobs/{id}/why": {"path.id": jobs},
    # The stream of a job that goes on has no end.
    "GET /v1/jobs/{id}/events": {"path.id": [*worked, *dead[:2]]},
    "POST /v1/jobs/{id}/cancel": {"path.id": [*until("running", [running() for _ in range(SOME)]), asking(), submit(delay_ms=3_600_000), worked[0]]},
    "POST /v1/jobs/{id}/redrive": {"path.id": [*(failed() for _ in range(SOME)), worked[0], runs[0]]},
    "DELETE /v1/dead/{id}": {"path.id": [*(failed() for _ in range(SOME)), worked[0], runs[0]]},
    "POST /v1/jobs/{id}/answers": {"path.id": [*asks, worked[0], runs[0]], "body.call_id": ["c1"]},
    "GET /v1/sessions/{id}": {"path.id": sessions},
    "DELETE /v1/sessions/{id}": {"path.id": [*(name_of(submit(ended=True)) for _ in range(SOME)), name_of(runs[1])]},
    "DELETE /v1/limits/{id}": {"path.id": [f"customer-{number}" for number in range(SOME)]},
    "DELETE /v1/schedules/{id}": {"path.id": [f"hourly-{number}" for number in range(SOME)]},
    "DELETE /v1/webhooks/{id}": {"path.id": gone},
    "GET /v1/webhooks/{id}/deliveries": {"path.id": hooks, "query.state": ["pending", "delivered", "failed"]},
    "POST /v1/webhooks/{id}/resend": {"path.id": hooks, "body.job_id": [ended, worked[0]]},
    # A ticket is for one of the two.
    "POST /v1/tickets": {"body.job_id": jobs},
    "POST /v1/jobs": {
        "body.session_id": ["seen", "new"],
        "body.agent_id": words["agent"],
        "body.job_id": [worked[0], runs[0]],
        "header.Idempotency-Key": ["one", "two"],
        "header.Prefer": ["wait=0", "wait=1"],
    },
    "GET /v1/jobs": {**{f"query.{name}": of for name, of in words.items()}, "query.state": ["running", "succeeded,failed", "awaiting_input"]},
    "GET /v1/dead": {f"query.{name}": of for name, of in words.items()},
    "GET /v1/sessions": {"query.agent": words["agent"]},
}
for route in ["GET /v1/jobs", "GET /v1/dead", "GET /v1/sessions", "GET /v1/webhooks", "GET /v1/schedules", "GET /v1/limits"]:
    ROUTES.setdefault(route, {})["query.cursor"] = cursors(route.split()[1])
for what in ["", "/next"]:
    ROUTES[f"GET /v1/schedules/{{id}}{what}"] = {"path.id": [f"hourly-{number}" for number in range(SOME, 2 * SOME)]}
for what in ["pause", "resume"]:
    ROUTES[f"POST /v1/schedules/{{id}}/{what}"] = ROUTES["GET /v1/schedules/{id}"]
ROUTES["GET /v1/webhooks/{id}"] = {"path.id": hooks}
for what in ["test", "rotate", "disable", "enable"]:
    ROUTES[f"POST /v1/webhooks/{{id}}/{what}"] = {"path.id": hooks}

document = ask("GET", "/v1/openapi.json")
known = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
for route in known.difference(ROUTES):
    # A session's stream has no end either.
    if "{" in route and route != "GET /v1/sessions/{id}/events":
        sys.exit(f"schemathesis_ids.py has no ids for {route}")
if wrong := set(ROUTES) - known:
    sys.exit(f"there is no route {wrong}")

for number, (route, bindings) in enumerate(ROUTES.items()):
    bindings = {key: values for key, values in bindings.items() if values}
    for at, values in enumerate(bindings.values()):
        print(f"[dictionaries.of-{number}-{at}]\nvalues = {json.dumps(values)}\n")
    bound = (f'{json.dumps(key)} = {{ dictionary = "of-{number}-{at}", probability = {OFTEN} }}' for at, key in enumerate(bindings))
    print(f"[[operations]]\ninclude-name = {json.dumps(route)}\nparameters = {{ {', '.join(bound)} }}\n")
