"""A client of the HTTP API of harness-fleet. One file, the standard library alone, Python 3.9 or newer.

    from harness_fleet import Client

    fleet = Client("https://fleet.example.com", "hfk_…")     # or HARNESS_URL and HARNESS_API_KEY
    job = fleet.submit("echo", {"any": "json"}, session_id="hello")
    job = fleet.wait(job["job_id"])
    print(job["state"], job["output"])

A job that was submitted is in the ledger: it has exactly one recorded end, whatever is killed or restarted.

**Retries.** The client makes each job's id before its first try. So a try whose answer was lost can be repeated: the
same job under the same id is accepted once. Connections that fail and answers that ask to come back (408, 429, 502,
503, 504) are tried again for `retry_for_s` after the first failure, with growing, jittered pauses that are never
shorter than `Retry-After`. Then the last error is raised. To go on in another process, keep the ids that you made
(`new_job_id`) and submit again.

Answers are plain dictionaries with the fields of `/docs`; `Job`, `Answer` and the others name them for type checkers.
A client may be shared by threads. It follows no redirects and uses no proxy, and the key is sent in a header alone.
"""

import collections
import email.utils
import http.client
import itertools
import json
import os
import random
import ssl
import time
from typing import Any, Deque, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, TypedDict, Union
from typing import cast
from urllib.parse import quote, urlencode, urlsplit

__all__ = ["Answer", "Client", "Event", "FleetError", "Job", "Problem", "Unreachable", "new_job_id"]

ENDS = ("succeeded", "failed", "cancelled")
# These say that the same request may succeed later.
_RETRIED = (408, 429, 502, 503, 504)
# One request waits at most so long for an end: shorter than the 60 s after which many proxies give up.
_WAIT_S = 45
# A connection that lay idle for longer may have been closed by the other side: ours closes them after 75 s.
_IDLE_S = 30.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
# The field of a sum for each thing that it can be taken by.
_SPEND_FIELDS = {"day": "day", "agent": "agent_id", "user": "user_id", "model": "model", "job": "job_id"}


class Failure(TypedDict, total=False):
    """Why an attempt failed. `message` needs a key with the scope `content`; without it there are its size and SHA-256."""

    code: str
    message: str
    message_bytes: int
    message_sha256: str
    retryable: bool


class Job(TypedDict, total=False):
    """A job. `output` needs a key with the scope `content`; without it there are `output_bytes` and `output_sha256`.
    A key without the scope `read` is shown `job_id` and `state` alone."""

    job_id: str
    trace_id: str
    session_id: str
    agent_id: str
    pool: str
    labels: Dict[str, str]  # where it has any; not in lists
    state: str
    attempts: int
    iterations: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    worker_id: Optional[str]
    accepted_at: str
    started_at: Optional[str]
    finished_at: Optional[str]
    questions: List["Question"]  # while it is awaiting_input
    failure: Failure
    code: Optional[str]  # of the last failure; in lists
    input: Any
    input_bytes: int
    input_sha256: str
    output: Any
    output_bytes: int
    output_sha256: str


class Question(TypedDict, total=False):
    """What a job asks a person. `question` needs a key with the scope `content`; its size and SHA-256 do not."""

    call_id: str
    kind: str  # question or approval
    question: Any
    question_bytes: int
    question_sha256: str
    asked_at: str
    expires_at: str


class Answer(TypedDict, total=False):
    """What became of one job of a batch: `status` is 202, 200 if it was accepted before, else `problem` says why."""

    status: int
    job_id: str
    session_id: str
    state: str
    accepted_at: str
    problem: Dict[str, Any]


class Spend(TypedDict, total=False):
    """A sum of model calls, in dollars. The first five fields are there where the sums are taken by them."""

    day: str
    agent_id: str
    user_id: str
    model: str
    job_id: str
    calls: int
    cost_usd: float
    unknown_usd: float
    held_usd: float
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int


class Session(TypedDict, total=False):
    """A session. `memory`, `context_window` and `feature_progress` need a key with the scope `content`; their sizes and SHA-256
    do not. Lists have the first five fields."""

    session_id: str
    agent_id: str
    created_at: str
    last_updated: str
    jobs: int
    iterations: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    memory: Any
    memory_bytes: int
    memory_sha256: str
    context_window: Any
    context_window_bytes: int
    context_window_sha256: str
    feature_progress: Any
    feature_progress_bytes: int
    feature_progress_sha256: str


class Schedule(TypedDict, total=False):
    """A schedule. `job` needs a key with the scope `content`; its size and SHA-256 do not. Times are RFC 3339, UTC."""

    name: str
    cron: str  # where it has an expression
    at: str  # where it has one moment
    zone: str
    jitter_ms: int
    catch_up: str  # skip, last or all
    within_ms: int
    overlap: str  # skip or on_busy
    job: Dict[str, Any]
    job_bytes: int
    job_sha256: str
    created_at: str
    paused_at: str  # while it does not fire
    next_at: str  # if an instant is left
    last_at: str  # if it has fired
    last_job: str  # likewise
    fired: int
    missed: int
    skipped: int


class Firing(TypedDict, total=False):
    """An instant of a schedule: in UTC, and as the clock of its zone shows it. `clock_change_s` is there where that clock
    was changed since the instant before."""

    at: str
    local: str
    clock_change_s: int


class Event(NamedTuple):
    """An event of a job: `state`, `iteration`, `text`, `note`, `gap` (some iterations are not shown) or `end`, with its data.

    `id` says where to go on: it is that of this event, or of the last one that has any.
    """

    name: str
    id: str
    data: Any


class FleetError(Exception):
    """What this client raises."""


class Problem(FleetError):
    """The API refused a request, for the reasons of its problem document (RFC 9457)."""

    def __init__(self, document: Dict[str, Any]) -> None:
        self.document = document
        self.status: int = document.get("status", 0)
        #: `urn:harness:` and a word, such as `invalid`.
        self.type: str = document.get("type", "about:blank")
        self.title: str = document.get("title", "")
        #: What was given, and what would be right.
        self.detail: str = document.get("detail", "")
        #: The field, header or parameter that is wrong.
        self.field: Optional[str] = document.get("field")
        #: The job that was tried; after a 503 it may have been accepted.
        self.job_id: Optional[str] = document.get("job_id")
        about = f"{self.field}: " if self.field else ""
        super().__init__(f"{self.status} {self.title}: {about}{self.detail}")


class Unreachable(FleetError):
    """No answer came within `retry_for_s`. A job that was tried (`job_id`) may have been accepted all the same."""

    def __init__(self, message: str, job_id: Optional[str] = None) -> None:
        self.job_id = job_id
        super().__init__(message)


def new_job_id() -> str:
    """Makes a job's id: a UUID of version 7 (RFC 9562), which holds the time in its first 48 bits."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 7 << 76  # version
    number = number & ~(0b11 << 62) | 0b10 << 62  # variant
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Client:
    """The API at an address, for the holder of a key."""

    def __init__(
        self,
        url: Optional[str] = None,
        key: Optional[str] = None,
        *,
        timeout_s: float = 30.0,
        retry_for_s: float = 60.0,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        """`url` is that of the API (else HARNESS_URL, else this machine's), `key` its key (else HARNESS_API_KEY).

        `timeout_s` bounds each wait for the network. A request is tried again until `retry_for_s` after its first
        failure. For an authority of your own: `tls=ssl.create_default_context(cafile="ca.pem")`.
        """
        url = url or os.environ.get("HARNESS_URL") or "http://127.0.0.1:8080"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"HARNESS_URL: got {url!r}, expected http:// or https:// and a host")
        if parts.username is not None:
            raise ValueError("HARNESS_URL: a key belongs into HARNESS_API_KEY, not into the address")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._key = (os.environ.get("HARNESS_API_KEY", "") if key is None else key).strip()
        if not all("!" <= character <= "~" for character in self._key):
            raise ValueError("HARNESS_API_KEY: expected letters, digits and _")
        self._timeout_s, self._retry_for_s = timeout_s, retry_for_s
        self._idle: Deque[Tuple[float, http.client.HTTPConnection]] = collections.deque(maxlen=16)

    def submit(
        self, agent_id: str, input: Any = None, *, wait_s: float = 0, job_id: Optional[str] = None, **fields: Any
    ) -> Job:
        """Submits a job. With `wait_s` it waits up to so many seconds, and the answer may be its end.

        `fields` are the other fields of a job, such as `session_id`, `pool`, `labels`, `retry`, `timeout_ms`,
        `max_iterations`, `max_tokens`, `max_cost_usd`, `run_at` (RFC 3339: not before), `delay_ms`.
        """
        job = {"job_id": job_id or new_job_id(), "agent_id": agent_id, "input": input, **fields}
        until = time.monotonic() + wait_s
        first_s = min(int(wait_s), _WAIT_S)
        accepted = cast(Job, self._ask("POST", "/v1/jobs", job, wait_s=first_s, job_id=job["job_id"]))
        if wait_s <= 0 or accepted["state"] in ENDS:
            return accepted
        return self._wait(job["job_id"], until)

    def batch(self, jobs: Iterable[Dict[str, Any]], *, group: int = 1_000) -> Iterator[Answer]:
        """Submits many jobs, and yields an answer for each, in order. Nothing is sent until you iterate.

        `jobs` may be endless: they are read and sent in groups of this many, and at most 8 MiB. A job that is refused
        is answered so, and the others go on. Jobs of one session run in the order given.
        """
        texts = (_text({"job_id": new_job_id(), **job}) for job in jobs)
        pending: List[bytes] = []
        failed: Optional[Exception] = None
        tries = _Tries(self._retry_for_s)
        while True:
            if not pending:
                # Not before what was read is accepted: `jobs` may take their time.
                try:
                    size = 0
                    for text in itertools.islice(texts, max(0, min(group, 10_000))):
                        pending.append(text)
                        size += len(text)
                        if size >= 8 << 20:
                            break
                except Exception as error:
                    # What was read before is still sent. Nothing more can be read.
                    failed = error
            if not pending:
                if failed:
                    raise failed
                return
            batch = self._ask("POST", "/v1/jobs/batch", b"\n".join(pending), kind="application/x-ndjson")
            answers: List[Answer] = batch["items"]
            # The last answer of a batch that was not read to its end says why, and belongs to no job.
            why = None if batch["complete"] else answers.pop()
            done = list(itertools.takewhile(lambda answer: answer["status"] not in _RETRIED, answers))
            yield from done
            del pending[: len(done)]
            if done:
                tries = _Tries(self._retry_for_s)
            if pending:
                # From the first that was not accepted on, so that jobs of one session keep their order.
                first = answers[len(done)] if len(done) < len(answers) else why
                problem = Problem(first["problem"] if first else {"title": "Jobs of a batch were not answered"})
                if problem.status not in _RETRIED:
                    raise problem
                tries.pause(problem, 1.0)

    def get(self, job_id: str) -> Job:
        """Reads a job."""
        return cast(Job, self._ask("GET", _of(job_id)))

    def wait(self, job_id: str, timeout_s: Optional[float] = None) -> Job:
        """Waits for a job's end, however long that takes; after `timeout_s` it raises `TimeoutError`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        job = self._wait(job_id, until)
        if job["state"] not in ENDS:
            raise TimeoutError(f"job {job_id} has not ended within {timeout_s} s, it is {job['state']}")
        return job

    def cancel(self, job_id: str) -> Job:
        """Cancels a job. One that waits has ended then; a running one ends soon. A `Problem` of 409: it had ended."""
        return cast(Job, self._ask("POST", _of(job_id) + "/cancel"))

    def answer(
        self,
        job_id: str,
        call_id: str,
        answer: Any = None,
        *,
        approve: Optional[bool] = None,
        by: Optional[str] = None,
    ) -> Job:
        """Answers a question of a job: with any JSON, or with `approve`; `by` names who answers.

        A `Problem` of 409: it was answered in another way, its time is over, the job has ended or waits for other calls.
        The same answer again is answered as the first.
        """
        body: Dict[str, Any] = {"call_id": call_id}
        if approve is None:
            body["answer"] = answer
        else:
            body["approve"] = approve
        if by is not None:
            body["by"] = by
        return cast(Job, self._ask("POST", _of(job_id) + "/answers", body))

    def follow(self, job_id: str, *, last_event_id: str = "") -> Iterator[Event]:
        """Yields what happens to a job, as it happens, until `end`. Nothing is asked until you iterate.

        A connection that breaks is renewed, and what is kept since the last event follows; `gap` says that some are
        not. Stop iterating whenever you like: the job goes on. To go on later, give the `id` of your last event.
        """
        tries = _Tries(self._retry_for_s, job_id)

        def lines(stream: http.client.HTTPResponse) -> Iterator[bytes]:
            nonlocal tries
            for line in iter(stream.readline, b""):
                # A comment counts, too: what breaks after it breaks for the first time.
                tries = _Tries(self._retry_for_s, job_id)
                yield line

        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last_event_id}
            # A comment comes every 15 s.
            connection = self._connection(max(self._timeout_s, _WAIT_S))
            pause_s = 0.0
            try:
                sent = {name: value for name, value in headers.items() if value}
                answer = self._begin(connection, "GET", _of(job_id) + "/events", None, sent)
                if answer.status != 200:
                    pause_s = _retry_after(answer.headers["Retry-After"])
                    raise Problem(_document(answer, answer.read()))
                for event in _events(lines(answer)):
                    if event.name == "retry":
                        pause_s = event.data / 1000
                        continue
                    last_event_id = event.id or last_event_id
                    yield event._replace(id=last_event_id)
                    if event.name == "end":
                        return
                raise ConnectionError("the stream ended before the job")
            except Problem as problem:
                if problem.status not in _RETRIED:
                    raise
                tries.pause(problem, pause_s)
            except ssl.SSLCertVerificationError:
                raise
            except (OSError, http.client.HTTPException) as error:
                tries.pause(error, pause_s)
            finally:
                connection.close()

    def redrive(self, job_id: str) -> Job:
        """Runs a failed job again, and returns the new job. A failed job is redriven once: then it is a 409.

        If the answer of a first try was lost, the second try has that 409 too, and its detail names the new job.
        """
        return cast(Job, self._ask("POST", _of(job_id) + "/redrive"))

    def drop(self, job_id: str) -> None:
        """Takes a failed job out of the list of dead letters; its result stays. Once dropped, it is a 409."""
        self._ask("DELETE", "/v1/dead/" + quote(job_id, safe=""))

    def why(self, job_id: str) -> str:
        """Says in one sentence what a job waits for, or how it ended."""
        return cast(str, self._ask("GET", _of(job_id) + "/why")["why"])

    def jobs(
        self,
        *,
        state: Union[str, Iterable[str], None] = None,
        labels: Optional[Mapping[str, str]] = None,
        **filters: str,
    ) -> Iterator[Job]:
        """Lists jobs, newest first, page by page.

        Filters: `state` (one or several), `labels` (a job has them all), `agent`, `session`, `pool`.
        """
        states = state if state is None or isinstance(state, str) else ",".join(state)
        return cast(Iterator[Job], self._pages("/v1/jobs", {"state": states, "label": _labels(labels), **filters}))

    def dead(self, *, labels: Optional[Mapping[str, str]] = None, **filters: str) -> Iterator[Job]:
        """Lists failed jobs that were neither redriven nor dropped, newest first. Filters as for `jobs`, no `state`."""
        return cast(Iterator[Job], self._pages("/v1/dead", {"label": _labels(labels), **filters}))

    def sessions(self, **filters: str) -> Iterator[Session]:
        """Lists sessions, by name.

        Filters: `agent`, `created_since`, `created_before`, `updated_since`, `updated_before`.
        """
        return cast(Iterator[Session], self._pages("/v1/sessions", {**filters}))

    def session(self, name: str) -> Session:
        """Reads a session."""
        return cast(Session, self._ask("GET", "/v1/sessions/" + quote(name, safe="")))

    def empty_session(self, name: str) -> None:
        """Empties a session: its memory, context and progress. A `Problem` of 409: it has jobs that have not ended."""
        self._ask("DELETE", "/v1/sessions/" + quote(name, safe=""))

    def spend(self, *by: str, days: int = 1) -> List[Spend]:
        """Sums up what model calls have cost, by `day` (the default), `agent`, `user`, `model`, `job`, or several.

        Of the last `days` days, today among them. The API looks at 10,000 rows at a time, so this may be many requests.
        """
        by = by or ("day",)
        sums: Dict[Tuple[str, ...], Dict[str, Any]] = {}
        for part in self._pages("/v1/spend", {"by": ",".join(by), "days": str(days)}, limit=None):
            whole = sums.setdefault(tuple(part[_SPEND_FIELDS[name]] for name in by), part)
            if whole is not part:
                for name, value in part.items():
                    if not isinstance(value, str):
                        whole[name] = round(whole[name] + value, 6)
        return [cast(Spend, sums[of]) for of in sorted(sums)]

    def make_schedule(self, name: str, job: Dict[str, Any], **fields: Any) -> Schedule:
        """Makes a schedule, which makes this job at each of its instants.

        `job` has the fields of a submission, such as `agent_id` and `input`, without `job_id`, `run_at`, `delay_ms` and
        `idempotency_key`. `fields` are `cron` or `at` (RFC 3339), and if need be `zone`, `jitter_ms`, `catch_up`,
        `within_ms`, `overlap`. A `Problem` of 409: there is one of this name; if the answer of a first try was lost, it may
        be this one.
        """
        return cast(Schedule, self._ask("POST", "/v1/schedules", {"name": name, "job": job, **fields}))

    def schedules(self) -> Iterator[Schedule]:
        """Lists schedules, by name."""
        return cast(Iterator[Schedule], self._pages("/v1/schedules", {}))

    def schedule(self, name: str) -> Schedule:
        """Reads a schedule."""
        return cast(Schedule, self._ask("GET", _of_schedule(name)))

    def next_firings(self, name: str, limit: int = 10) -> List[Firing]:
        """Lists the next instants of a schedule, at most so many (100 at most)."""
        return cast(List[Firing], self._ask("GET", f"{_of_schedule(name)}/next?limit={limit}")["items"])

    def pause_schedule(self, name: str) -> Schedule:
        """Lets a schedule fire no more until it is resumed."""
        return cast(Schedule, self._ask("POST", _of_schedule(name) + "/pause"))

    def resume_schedule(self, name: str) -> Schedule:
        """Lets a schedule fire from its next instant on. A `Problem` of 409: its one instant is over."""
        return cast(Schedule, self._ask("POST", _of_schedule(name) + "/resume"))

    def remove_schedule(self, name: str) -> None:
        """Removes a schedule. The jobs that it has made stay."""
        self._ask("DELETE", _of_schedule(name))

    def _wait(self, job_id: str, until: Optional[float]) -> Job:
        """The job at its end, or as it is then."""
        while True:
            left = _WAIT_S if until is None else until - time.monotonic()
            job = cast(Job, self._ask("GET", _of(job_id), wait_s=max(0, min(int(left), _WAIT_S))))
            if job["state"] in ENDS or (until is not None and time.monotonic() >= until):
                return job
            if left < 1:
                time.sleep(max(0.0, min(left, 0.1)))

    def _pages(
        self, path: str, filters: Mapping[str, Union[str, List[str], None]], limit: Optional[str] = "500"
    ) -> Iterator[Any]:
        query = {name: value for name, value in {"limit": limit, **filters}.items() if value is not None}
        while True:
            page = self._ask("GET", f"{path}?{urlencode(query, doseq=True)}")
            yield from page["items"]
            if not page.get("next"):
                return
            query["cursor"] = page["next"]

    def _ask(
        self,
        method: str,
        path: str,
        body: Union[Dict[str, Any], bytes, None] = None,
        *,
        kind: str = "application/json",
        wait_s: int = 0,
        job_id: Optional[str] = None,
    ) -> Any:
        """Sends a request until it is answered for good, and returns the answer's JSON."""
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = kind
        if wait_s:
            headers["Prefer"] = f"wait={wait_s}"
        sent = _text(body) if isinstance(body, dict) else body
        tries = _Tries(self._retry_for_s, job_id)
        while True:
            try:
                answer, content = self._send(method, path, sent, headers, wait_s)
            except ssl.SSLCertVerificationError:
                raise
            except (OSError, http.client.HTTPException) as error:
                tries.pause(error, 0.0)
                continue
            if answer.status < 300:
                return json.loads(content) if content else None
            problem = Problem(_document(answer, content))
            if answer.status not in _RETRIED:
                raise problem
            tries.pause(problem, _retry_after(answer.headers["Retry-After"]))

    def _send(
        self, method: str, path: str, body: Optional[bytes], headers: Dict[str, str], wait_s: int
    ) -> Tuple[http.client.HTTPResponse, bytes]:
        """Sends once, and reads the whole answer."""
        connection = self._connection(self._timeout_s + wait_s)
        try:
            answer = self._begin(connection, method, path, body, headers)
            content = answer.read()
        except BaseException:
            connection.close()
            raise
        if answer.will_close:
            connection.close()
        else:
            self._idle.append((time.monotonic(), connection))
        return answer, content

    def _begin(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Optional[bytes],
        headers: Dict[str, str],
    ) -> http.client.HTTPResponse:
        if self._key:
            headers = {**headers, "Authorization": f"Bearer {self._key}"}
        try:
            connection.request(method, self._path + path, body, headers)
        except (BrokenPipeError, ConnectionResetError) as error:
            # A refusal may come before the whole body was sent.
            try:
                return connection.getresponse()
            except (OSError, http.client.HTTPException):
                raise error from None
        return connection.getresponse()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """One that was used a moment ago, or a new one."""
        while True:
            try:
                used_at, connection = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - used_at < _IDLE_S and connection.sock is not None:
                connection.sock.settimeout(timeout_s)
                return connection
            connection.close()
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)


class _Tries:
    """The tries of one request: how long until the next one, and when it is enough. Their time begins with the first
    failure, so what a good connection or a caller took before it does not count.
    """

    def __init__(self, for_s: float, job_id: Optional[str] = None) -> None:
        self._for_s, self._pause_s, self._job_id = for_s, _SHORTEST_PAUSE_S, job_id
        self._until: Optional[float] = None

    def pause(self, error: Exception, at_least_s: float) -> None:
        """Sleeps before the next try, or raises the error where that would be too late."""
        if self._until is None:
            self._until = time.monotonic() + self._for_s
        pause_s = at_least_s + random.uniform(0, self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if time.monotonic() + pause_s >= self._until:
            if isinstance(error, Problem):
                raise error
            raise Unreachable(f"no answer: {type(error).__name__}: {error}", self._job_id) from error
        time.sleep(pause_s)


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Reads server-sent events, and how long the next connection should wait: `retry`, with milliseconds. An event that
    is not whole at the end is dropped.
    """
    name, last_id, data = "", "", []
    for line in lines:
        field, _, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "event":
            name = value
        elif field == "id":
            last_id = value
        elif field == "data":
            data.append(value)
        elif field == "retry" and value.isdigit():
            yield Event("retry", "", int(value))
        elif line.strip(b"\r\n") == b"":
            if data:
                yield Event(name or "message", last_id, json.loads("\n".join(data)))
            name, data = "", []


def _labels(labels: Optional[Mapping[str, str]]) -> List[str]:
    return [f"{key}={value}" for key, value in (labels or {}).items()]


def _of(job_id: str) -> str:
    return "/v1/jobs/" + quote(job_id, safe="")


def _of_schedule(name: str) -> str:
    return "/v1/schedules/" + quote(name, safe="")


def _text(value: Any) -> bytes:
    """JSON on one line. What JSON cannot hold (NaN, lone surrogates) is a `ValueError` here."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _document(answer: http.client.HTTPResponse, content: bytes) -> Dict[str, Any]:
    """The problem document; one is made of the answer of a proxy, which sends none."""
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict) and "title" in document:
        return {"status": answer.status, **document}
    return {"status": answer.status, "title": answer.reason, "detail": content[:200].decode(errors="replace")}


def _retry_after(given: Optional[str]) -> float:
    """Seconds, or the time until a date (RFC 9110)."""
    if not given:
        return 0.0
    try:
        return max(0.0, float(given)) if given[0].isdigit() else _until(given)
    except (TypeError, ValueError):
        return 0.0


def _until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())
