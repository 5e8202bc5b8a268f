#!/usr/bin/python3
"""An MCP server with faults: each tool has one. What it does at its start is its first argument."""

import json
import os
import subprocess
import sys
import threading
import time

START = sys.argv[1] if len(sys.argv) > 1 else "well"
COUNT = 0
CHANGED = []
CANCELLED = []
ANSWERS = []
LOCK = threading.Lock()


def raw(line):
    with LOCK:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def send(**message):
    raw(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def text(id, words):
    send(id=id, result={"content": [{"type": "text", "text": words}]})


def tools():
    names = ["echo", "count", "die", "hang", "late", "garbage", "flood", "nul", "half", "byte", "big", "huge", "deep",
             "picture", "child", "change", "cancelled", "ask", "answers", "fail", "wrong", "structured", "deaf", "dot.ted",
             "stream", "pester", "x" * 80, "refers"]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    listed = [{"name": name, "description": "Does %s." % name, "inputSchema": schema} for name in names]
    if CHANGED:
        listed[0]["description"] = "Does echo, louder."
        listed[1:2] = [{"name": "fresh", "description": "New.", "inputSchema": schema}]
    listed[-1]["inputSchema"] = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema"}}}
    return listed


def call(id, params):
    global COUNT
    name, given = params["name"], params.get("arguments")
    if name == "echo":
        text(id, json.dumps({"arguments": given, "key": params["_meta"]["harness/callKey"], "cwd": os.getcwd(),
                             "job": os.environ.get("HARNESS_JOB_ID"), "leaked": "CARGO_MANIFEST_DIR" in os.environ}))
    elif name == "count":
        COUNT += 1
        text(id, str(COUNT))
    elif name == "die":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    elif name == "late":
        threading.Timer(1.0, text, (id, "late")).start()
    elif name == "garbage":
        raw(b"Listening on port 8080\n\n{\n\xff\xfe\n[1, 2]\nnull\n{\"jsonrpc\": \"2.0\"}\n")
        text(id, "well")
    elif name == "flood":
        while True:
            send(method="notifications/message", params={"level": "info", "data": "x" * 10000})
    elif name == "stream":
        while True:
            raw(b"x" * 100000)
    elif name == "pester":
        while True:
            send(id=1, method="ping")
    elif name == "nul":
        text(id, "a\0b")
    elif name == "half":
        raw(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"a\\ud83db"}]}}\n' % id)
    elif name == "byte":
        raw(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"a\xc3b"}]}}\n' % id)
    elif name == "big":
        text(id, "0123456789" * 100000)
    elif name == "huge":
        text(id, "0123456789" * 2000000)
    elif name == "deep":
        raw(b'{"jsonrpc":"2.0","id":%d,"result":{"structuredContent":%s%s}}\n' % (id, b"[" * 500, b"]" * 500))
    elif name == "picture":
        image = {"type": "image", "mimeType": "image/png", "data": "iVBORw0KGgo="}
        odd = {"type": "image", "mimeType": "image/x-odd", "data": "aGVsbG8="}
        broken = {"type": "image", "mimeType": "image/png", "data": "%%%"}
        send(id=id, result={"content": [image, odd, broken]})
    elif name == "child":
        text(id, str(subprocess.Popen(["sleep", "600"]).pid))
    elif name == "change":
        CHANGED.append(True)
        send(method="notifications/tools/list_changed")
        text(id, "changed")
    elif name == "cancelled":
        text(id, json.dumps(CANCELLED))
    elif name == "ask":
        for at, method in enumerate(["sampling/createMessage", "elicitation/create", "roots/list", "harness/odd"]):
            params = {"messages": [], "maxTokens": 1, "message": "?",
                      "requestedSchema": {"type": "object", "properties": {}}}
            send(id=1000 + at, method=method, params=params)
        text(id, "asked")
    elif name == "answers":
        text(id, json.dumps(ANSWERS))
    elif name == "fail":
        send(id=id, result={"content": [{"type": "text", "text": "no such thing"}], "isError": True})
    elif name == "wrong":
        send(id=id, error={"code": -32602, "message": "not \0 like this"})
    elif name == "structured":
        send(id=id, result={"content": [], "structuredContent": {"n": 1}})
    elif name == "deaf":
        text(id, "deaf now")
        time.sleep(600)
    elif name == "dot.ted":
        text(id, "dotted")


if START == "dies":
    print("I have no configuration", file=sys.stderr, flush=True)
    sys.exit(1)
if START == "silent":
    time.sleep(600)
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "initialize":
        send(id=id, result={"protocolVersion": message["params"]["protocolVersion"],
                            "capabilities": {"tools": {"listChanged": True}},
                            "serverInfo": {"name": "faults", "version": "1"}})
    elif method == "tools/list" and START == "endless":
        send(id=id, result={"tools": tools()[:1], "nextCursor": "again"})
    elif method == "tools/list" and START == "unlisted":
        pass
    elif method == "tools/list":
        send(id=id, result={"tools": tools()})
        if START == "eager":
            START = "well"
            send(method="notifications/tools/list_changed")
    elif method == "tools/call":
        call(id, message["params"])
    elif method == "ping":
        send(id=id, result={})
    elif method == "notifications/cancelled":
        CANCELLED.append(message["params"]["requestId"])
    elif method is None:
        ANSWERS.append(message)
if START == "stays":
    time.sleep(600)
