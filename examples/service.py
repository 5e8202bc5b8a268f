#!/usr/bin/env python3
"""Counts in small steps. This is a harness as an HTTP service in plain Python, and a template for your own.

    examples/service.py 8090

Agent (agents.toml):

    [agents.counter]
    harness = "http"
    url = "http://127.0.0.1:8090/run"

Job input: {"steps": 20, "delay_ms": 200}. The output says where the last run began.

A service gets one POST for each attempt at a job, and answers with the lines of the contract, each as soon as it is
there. Three rules make it safe to lose at any moment:

  1. Look first for what is done: the session holds the state as of the last checkpoint.
  2. Write one checkpoint per step, with everything that the step changed.
  3. Only the run with the greatest Harness-Epoch counts. Stop an older one, and stop when the connection closes.

The whole contract is documented in worker/remote/src/lib.rs.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The newest run of each job, and whether it was asked to stop.
runs = {}
lock = threading.Lock()


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))
        job, epoch = order["job"]["job_id"], order["job"]["epoch"]
        with lock:
            newest = runs.setdefault(job, {"epoch": epoch, "stop": False})
            if newest["epoch"] < epoch:
                newest = runs[job] = {"epoch": epoch, "stop": False}
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            self.count(order, lambda: runs.get(job) is not newest or newest["stop"])
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # The worker has gone; another one asks anew.

    def count(self, order, is_over):
        job, asked = order["job"]["job_id"], order["job"]["input"]
        begun = order["session"]["feature_progress"].get(job, {"done": 0})["done"]
        for step in range(begun, asked["steps"]):
            if is_over():
                return
            time.sleep(asked.get("delay_ms", 0) / 1000)
            self.say("checkpoint", feature_progress={job: {"done": step + 1}})
        self.say("result", output={"steps": asked["steps"], "resumed_at": begun})

    def do_DELETE(self):
        with lock:
            run = runs.get(self.path.rsplit("/", 1)[-1])
            if run and run["epoch"] == int(self.headers["harness-epoch"]):
                run["stop"] = True
        self.send_response(204)
        self.end_headers()

    def say(self, kind, **fields):
        line = json.dumps({"type": kind, **fields}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service)
    print(f"http://127.0.0.1:{server.server_port}/run", flush=True)
    server.serve_forever()
