#!/usr/bin/env python3
"""A client of the fleet that knows only its AMQP contract.

Publishes the jobs that it reads from stdin, one JSON object per line, and prints each reply on a line. The input:

    {"via": "exchange" | "queue", "pool": "default", "reply": true, "body": {...}, "properties": {...}}
    {"raw": "...", ...}                              # instead of body: raw bytes

The body's `schema` and `job_id` are added if they are missing, and so is the property `message_id`.

    publish.py AMQP_URL REPLIES [SECONDS]            # ends after this many replies
"""

import json
import os
import sys
import time

import pika


def job_id():
    """Returns a UUID of version 7 (RFC 9562, section 5.7): 48 bits of Unix time in milliseconds, the rest random."""
    number = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 7 << 76  # version
    number = number & ~(0b11 << 62) | 0b10 << 62  # variant
    text = f"{number:032x}"
    return "-".join([text[:8], text[8:12], text[12:16], text[16:20], text[20:]])


def publish(channel, order, reply_queue):
    if "raw" in order:
        body, message_id = order["raw"], None
    else:
        spec = {"schema": "harness.job.v1", "job_id": job_id(), **order["body"]}
        body, message_id = json.dumps(spec), spec["job_id"]
    given = {"message_id": message_id, **order.get("properties", {})}
    properties = pika.BasicProperties(
        delivery_mode=2,  # persistent
        content_type="application/json",
        type="harness.job.v1",
        reply_to=reply_queue if order.get("reply") else None,
        **given,
    )
    pool = order.get("pool", "default")
    where = ("harness.jobs", pool) if order["via"] == "exchange" else ("", f"harness.jobs.{pool}")
    # With confirms on, this raises unless the broker has accepted the message.
    channel.basic_publish(*where, body, properties, mandatory=True)
    return message_id


def main():
    url, replies, *seconds = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    reply_queue = channel.queue_declare("", exclusive=True).method.queue
    for line in sys.stdin:
        print(json.dumps({"published": publish(channel, json.loads(line), reply_queue)}), flush=True)
    left = int(replies)
    if left:
        patience = float(seconds[0]) if seconds else 30
        for method, properties, body in channel.consume(reply_queue, inactivity_timeout=patience):
            if method is None:
                sys.exit(f"{left} replies did not come within {patience} s")
            channel.basic_ack(method.delivery_tag)
            reply = {
                "reply": json.loads(body),
                "type": properties.type,
                "message_id": properties.message_id,
                "correlation_id": properties.correlation_id,
                "content_type": properties.content_type,
                "traceparent": (properties.headers or {}).get("traceparent"),
            }
            print(json.dumps(reply), flush=True)
            left -= 1
            if not left:
                break
    connection.close()


if __name__ == "__main__":
    main()
