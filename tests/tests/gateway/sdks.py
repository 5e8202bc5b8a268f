"""An ordinary program: it knows no gateway, only its SDKs, which read their address and key from the environment."""
import anthropic
import openai

claude = anthropic.Anthropic()
ask = [{"role": "user", "content": "Say something."}]
answer = claude.messages.create(model="claude-opus-5-5", max_tokens=50, messages=ask)
assert answer.content[0].text.startswith("w0 w1"), answer
with claude.messages.stream(model="claude-opus-5-5", max_tokens=50, messages=ask) as stream:
    assert "".join(stream.text_stream).startswith("w0 w1")
    assert stream.get_final_message().usage.output_tokens == 20
assert claude.messages.count_tokens(model="claude-opus-5-5", messages=ask).input_tokens > 0
assert [model.id for model in claude.models.list()][0] == "claude-opus-5-5"

gpt = openai.OpenAI()
answer = gpt.chat.completions.create(model="gpt-6-sol", messages=ask, max_completion_tokens=50)
assert answer.choices[0].message.content.startswith("w0 w1"), answer
pieces = list(gpt.chat.completions.create(model="gpt-6-sol", messages=ask, max_completion_tokens=50, stream=True))
assert "".join(piece.choices[0].delta.content or "" for piece in pieces).startswith("w0 w1")
assert all(piece.usage is None for piece in pieces)
answer = gpt.responses.create(model="gpt-6-sol", input="Say something.", max_output_tokens=50)
assert answer.output_text.startswith("w0 w1"), answer
last = list(gpt.responses.create(model="gpt-6-sol", input="Say something.", max_output_tokens=50, stream=True))[-1]
assert last.type == "response.completed" and last.response.usage.output_tokens == 20

try:
    gpt.with_options(max_retries=0).images.generate(model="gpt-6-sol", prompt="a picture")
    raise SystemExit("an unmetered path was served")
except openai.NotFoundError as refused:
    assert "is not served" in str(refused), refused
try:
    claude.messages.create(model="claude-none", max_tokens=50, messages=ask)
    raise SystemExit("another model was served")
except anthropic.PermissionDeniedError as refused:
    assert "claude-none" in str(refused), refused
print("done")
