"""An ordinary program of the Claude Agent SDK, without tools. It reads its address and key from the environment."""
import asyncio

from claude_agent_sdk import AssistantMessage, ClaudeAgentOptions, ResultMessage, TextBlock, query

OPTIONS = ClaudeAgentOptions(model="claude-opus-5-5", max_turns=3, setting_sources=[], tools=[])


async def main():
    said, ended = "", None
    async for message in query(prompt="Say something.", options=OPTIONS):
        print(message, flush=True)
        if isinstance(message, AssistantMessage):
            said += "".join(block.text for block in message.content if isinstance(block, TextBlock))
        if isinstance(message, ResultMessage):
            ended = message
    assert said.startswith("w0 w1"), said
    assert ended and not ended.is_error, ended


asyncio.run(main())
