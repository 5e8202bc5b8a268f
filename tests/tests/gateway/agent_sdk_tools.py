"""An ordinary program of the Claude Agent SDK, with a tool of its own. It reads its address and key from the environment.

The tool writes a line to the file NOTES, and waits behind the fourth one until the file GO is there."""
import asyncio
import os

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage, create_sdk_mcp_server, tool


def noted():
    try:
        with open(os.environ["NOTES"]) as file:
            return len(file.readlines())
    except FileNotFoundError:
        return 0


@tool("note", "Notes a page.", {"page": str})
async def note(args):
    with open(os.environ["NOTES"], "a") as file:
        file.write(args["page"] + "\n")
    while noted() == 4 and not os.path.exists(os.environ["GO"]):
        await asyncio.sleep(0.05)
    return {"content": [{"type": "text", "text": "noted " + args["page"]}]}


OPTIONS = ClaudeAgentOptions(
    model="claude-opus-5-5",
    max_turns=9,
    setting_sources=[],
    tools=[],
    mcp_servers={"desk": create_sdk_mcp_server(name="desk", version="1.0.0", tools=[note])},
    allowed_tools=["mcp__desk__note"],
)


async def main():
    ended = None
    async with ClaudeSDKClient(options=OPTIONS) as client:
        await client.query("Note the pages. play:notes")
        async for message in client.receive_response():
            print(message, flush=True)
            if isinstance(message, ResultMessage):
                ended = message
    assert ended and not ended.is_error and ended.result == "All noted.", ended
    assert noted() == 6, noted()


asyncio.run(main())
