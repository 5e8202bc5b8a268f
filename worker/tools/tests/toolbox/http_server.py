#!/usr/bin/python3
"""An MCP server over streamable HTTP with faults. It writes its port to stdout, and each request's headers to the file
that is its first argument."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SEEN = open(sys.argv[1], "a", buffering=1)
ELSEWHERE = sys.argv[2] if len(sys.argv) > 2 else ""
NAMES = ["echo", "sse", "slow", "huge", "garbage", "elsewhere", "gone", "busy", "cut", "html"]


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def result(self, id, result, **headers):
        self.answer(200, json.dumps({"jsonrpc": "2.0", "id": id, "result": result}).encode(), **headers)

    def do_GET(self):
        self.answer(405)

    def do_DELETE(self):
        print(json.dumps({"method": "DELETE"}), file=SEEN)
        self.answer(200)

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        headers = {name.lower(): value for name, value in self.headers.items()}
        print(json.dumps({"method": method, "name": params.get("name"), "headers": headers}), file=SEEN)
        text = {"content": [{"type": "text", "text": "well"}]}
        if method == "initialize":
            self.result(id, {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                             "serverInfo": {"name": "http", "version": "1"}}, Mcp_Session_Id="session-1")
        elif method == "tools/list":
            self.result(id, {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in NAMES]})
        elif method == "ping":
            self.result(id, {})
        elif method != "tools/call":
            self.answer(202)
        elif params["name"] == "echo":
            self.result(id, text)
        elif params["name"] == "sse":
            event = json.dumps({"jsonrpc": "2.0", "id": id, "result": text})
            self.answer(200, f"event: message\ndata: {event}\n\n".encode(), "text/event-stream")
        elif params["name"] == "slow":
            time.sleep(60)
        elif params["name"] == "huge":
            self.result(id, {"content": [{"type": "text", "text": "x" * 20_000_000}]})
        elif params["name"] == "garbage":
            self.answer(200, b'{"jsonrpc": "2.0", "id":')
        elif params["name"] == "elsewhere":
            self.answer(307, Location=ELSEWHERE)
        elif params["name"] == "gone":
            self.answer(404)
        elif params["name"] == "busy":
            self.answer(503, b"try later", "text/plain")
        elif params["name"] == "html":
            self.answer(200, b"<html>", "text/html")
        elif params["name"] == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"event: message\ndata: {\"jsonrpc\"")
            self.close_connection = True


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
print(server.server_address[1], flush=True)
server.serve_forever()
