#!/usr/bin/env python3
"""Reads text files, one after the other. This is a harness in plain Python and a template for your own.

Agent (agents.toml):

    [agents.reader]
    harness = "command"
    command = ["examples/reader.py"]        # relative to the worker's current folder
    env = { READER_ROOT = "/srv/texts" }    # optional: where the files are

Job input:

    {"paths": ["README.md", "docs/guide.md"]}              these files, or
    {"folder": "docs", "pattern": "*.md"}                  all files below a folder whose names match the pattern
    "delay_ms": 200                                        with either: wait before each file (for trying out stops)

Paths are relative to READER_ROOT. Without it they are relative to the parent of the folder that holds this file.
Nothing outside of that root is read, because the input comes from the job's caller, who is not you.

The program counts the lines, words and Markdown headings of each file, and its most frequent words. The output is a
summary of the job.

To use it as a template: a harness for harness.command.v1 reads one line of JSON from stdin (read_order), writes lines
of JSON to stdout (say), and exits after its result or error. Three rules make it safe to kill at any moment:

  1. Look first for what is done (Progress). The session holds the state as of the last checkpoint, whichever attempt
     wrote it, on whichever machine.
  2. Write one checkpoint per step (Progress.delta), with everything that the step changed. So the totals and the note
     that the step is done are stored together or not at all.
  3. On SIGTERM finish the step, write its checkpoint, and exit without a result. The job goes on elsewhere.

Replace count() and the loop in work(). Print nothing else to stdout; stderr goes to the worker's log. The whole
contract is documented in worker/command/src/lib.rs.
"""

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

WORD = re.compile(r"[^\W\d_]{3,}")
HEADING = re.compile(r"#{1,6}\s+\S")
FENCE = re.compile(r"\s*(```|~~~)")
KEEP_WORDS = 200  # the most frequent words of each file; a checkpoint should stay small
KEEP_NOTES = 2  # how many of the session's earlier jobs keep their notes of progress
TOP = 10


class Failed(Exception):
    """Ends the attempt with an error line."""

    def __init__(self, message, retryable=False):
        super().__init__(message)
        self.retryable = retryable


def say(kind, **fields):
    """Writes one line. Without the flush, the worker would not see it until the buffer is full."""
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


class Stopping:
    """Records that SIGTERM has come, in `asked`."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self.ask)

    def ask(self, _signal, _frame):
        # Do nothing more here: a print could interrupt one that is under way, and then Python raises an error.
        self.asked = True

    def wait(self, delay_ms):
        """Waits for this long, or until the stop if that comes first."""
        end = time.monotonic() + delay_ms / 1000
        while not self.asked and time.monotonic() < end:
            time.sleep(min(0.02, max(0.0, end - time.monotonic())))


class Progress:
    """What the session knows about this job: every file that is done, and the words of all of them."""

    def __init__(self, job, session):
        self.job_id = job["job_id"]
        notes = session["feature_progress"]
        mine = notes.get(self.job_id) or {}
        self.done = mine.get("done", {})
        self.words = Counter(mine.get("words", {}))
        self.totals = Counter(session["memory"].get("reader", {}))
        self.resumed_at = len(self.done)
        # Job ids are UUIDv7, so they sort by time. This job's own note is kept when the job is finished: the worker may
        # die before it has recorded the end, and then the job starts again.
        jobs = sorted(key for key in notes if re.fullmatch(r"[0-9a-f-]{36}", key) and key != self.job_id)
        self.outdated = jobs[:-KEEP_NOTES]

    def delta(self, name, counts, words):
        """Returns the checkpoint of one more file, as merge patches that hold only what has changed."""
        self.done[name] = counts
        self.words.update(words)
        self.totals.update({"files": 1, **counts})
        note = {"done": {name: counts}, "words": {word: self.words[word] for word in words}}
        text = "{}: {words} words in {lines} lines, {headings} headings".format(name, **counts)
        notes = {self.job_id: note, **{job: None for job in self.outdated}}
        self.outdated = []
        return {
            "memory": {"reader": dict(self.totals)},
            "feature_progress": notes,
            "context_window": [{"role": "assistant", "content": text}],
        }

    def summary(self):
        total = Counter()
        for counts in self.done.values():
            total.update(counts)
        top = sorted(self.words.items(), key=lambda item: (-item[1], item[0]))[:TOP]
        return {
            "files": len(self.done),
            "lines": total["lines"],
            "words": total["words"],
            "headings": total["headings"],
            "top_words": [{"word": word, "count": count} for word, count in top],
            "resumed_at": self.resumed_at,
        }


def read_order():
    order = json.loads(sys.stdin.buffer.readline())  # bytes: JSON is UTF-8, whatever the locale says
    if order["protocol"] != "harness.command.v1":
        raise Failed(f"protocol: got {order['protocol']}, expected harness.command.v1")
    return order["job"], order["session"]


def checked_input(given):
    """Returns the input's fields, each checked to be of the right type."""
    if not isinstance(given, dict):
        raise Failed(f"input: got {json.dumps(given)[:60]}, expected an object with paths or folder")
    unknown = sorted(set(given) - {"paths", "folder", "pattern", "delay_ms"})
    if unknown:
        raise Failed(f"input.{unknown[0]}: unknown, expected paths, folder, pattern or delay_ms")
    if ("paths" in given) == ("folder" in given):
        raise Failed("input: expected either paths or folder")
    paths = given.get("paths", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise Failed("input.paths: expected a list of file names")
    for name in ("folder", "pattern"):
        if not isinstance(given.get(name, ""), str):
            raise Failed(f"input.{name}: got {given[name]!r}, expected text")
    delay_ms = given.get("delay_ms", 0)
    if isinstance(delay_ms, bool) or not isinstance(delay_ms, (int, float)) or not 0 <= delay_ms <= 60_000:
        raise Failed(f"input.delay_ms: got {delay_ms!r}, expected 0 to 60000")
    return paths, given.get("folder"), given.get("pattern", "*.md"), delay_ms


def inside(root, field, name):
    """Returns the path of a name from the input. A name that leaves the root, even through a link, is refused."""
    path = (root / name).resolve()
    if path != root and root not in path.parents:
        raise Failed(f"{field}: got {name!r}, which lies outside of {root}")
    return path


def find_files(root, paths, folder, pattern):
    """Returns every file to read, by its path from the root, before the first one is read."""
    if folder is not None:
        top = inside(root, "input.folder", folder)
        if not top.is_dir():
            raise Failed(f"input.folder: got {folder!r}, expected a folder in {root}")
        if not pattern:
            raise Failed("input.pattern: got '', expected something like *.md")
        try:
            fitting = sorted(path.resolve() for path in top.rglob(pattern) if path.is_file())
        except (ValueError, NotImplementedError) as error:  # for instance, the pattern is an absolute path
            raise Failed(f"input.pattern: got {pattern!r}, expected something like *.md ({error})") from error
        files = [path for path in fitting if root in path.parents]
        if not files:
            raise Failed(f"input.pattern: no file in {folder!r} fits {pattern!r}")
    else:
        files = [inside(root, f"input.paths[{at}]", name) for at, name in enumerate(paths)]
        for at, path in enumerate(files):
            if not path.is_file():
                raise Failed(f"input.paths[{at}]: got {paths[at]!r}, expected a file in {root}")
    # A name that is not UTF-8 could not be stored.
    return {str(path.relative_to(root)).encode(errors="replace").decode(): path for path in files}


def count(path):
    """Does one step of the work."""
    counts = {"lines": 0, "words": 0, "headings": 0}
    words = Counter()
    fenced = False
    with open(path, encoding="utf-8", errors="replace") as text:
        for line in text:
            counts["lines"] += 1
            counts["words"] += len(line.split())
            if FENCE.match(line):
                fenced = not fenced
            elif not fenced and HEADING.match(line):
                counts["headings"] += 1
            words.update(word.lower() for word in WORD.findall(line))
    return counts, dict(words.most_common(KEEP_WORDS))


def work(stopping):
    job, session = read_order()
    paths, folder, pattern, delay_ms = checked_input(job["input"])
    root = Path(os.environ.get("READER_ROOT") or Path(__file__).resolve().parent.parent).resolve()
    try:
        files = find_files(root, paths, folder, pattern)
    except OSError as error:
        raise Failed(f"input: {error.strerror}: {str(error.filename)[:200]}") from error
    progress = Progress(job, session)
    for name, path in files.items():
        if name in progress.done:
            continue
        stopping.wait(delay_ms)
        if stopping.asked:
            return
        try:
            counts, words = count(path)
        except OSError as error:
            raise Failed(f"{name}: {error.strerror}", retryable=True) from error
        say("checkpoint", **progress.delta(name, counts, words))
        say("event", name="file", data={"name": name, "done": len(progress.done), "of": len(files)})
    say("result", output=progress.summary())


def main():
    stopping = Stopping()
    try:
        work(stopping)
    except Failed as failure:
        say("error", message=str(failure), retryable=failure.retryable)


if __name__ == "__main__":
    main()
