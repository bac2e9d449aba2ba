"""An OpenAI-compatible chat server on loopback that answers by fixed rules, with switches for what can go wrong.

It knows ragas' four prompts by what they ask, and answers each with JSON from the texts: a passage is useful if it
holds the answer's last word, a statement is borne out if each of its words stands in the context. Any other prompt
is answered with the first passage.

A fault strikes the first `times` requests (None: all) whose text holds `word`. `wire` counts all that came in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse


@dataclass
class Fault:
    """`kind`: malformed (content), html (body), stall, drip, drop, or an HTTP status as text."""

    kind: str
    times: int | None = None
    word: str = ""
    retry_after: str | None = None
    body: str = "no"


@dataclass
class Chat:
    faults: list[Fault] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    """Every request that came in."""
    headers: list[dict] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    delay: float = 0.0
    most_at_once: int = 0
    at_once: int = 0
    url: str = ""

    @property
    def wire(self):
        return len(self.bodies)

    def fault(self, text):
        for fault in self.faults:
            if fault.word in text and fault.times != 0:
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None


def words(text):
    return re.findall(r"\w+", text.lower())


def sentences(text):
    return [part.strip() for part in re.split(r"(?<=\.)\s+", text) if part.strip()]


def borne_out(statement, context):
    return int(set(words(statement)) <= set(words(context)))


def judged(prompt):
    """ragas' prompt -> what a model would say; None if it is no prompt of ragas'."""
    match = re.search(r"same with the following input\s*input: (.*)\s*Output:", prompt, re.DOTALL)
    if match is None:
        return None
    given = json.loads(match[1])
    if "if the context was useful" in prompt:
        useful = words(given["answer"])[-1] in words(given["context"])
        return {"reason": "so", "verdict": int(useful)}
    if "can be attributed to the given context" in prompt:
        found = [(s, borne_out(s, given["context"])) for s in sentences(given["answer"])]
        return {"classifications": [{"statement": s, "reason": "so", "attributed": one} for s, one in found]}
    if "Break down each sentence" in prompt:
        return {"statements": sentences(given["answer"])}
    if "judge the faithfulness" in prompt:
        found = [(s, borne_out(s, given["context"])) for s in given["statements"]]
        return {"statements": [{"statement": s, "reason": "so", "verdict": one} for s, one in found]}
    if "Generate a question" in prompt:
        return {"question": f"what is {given['response']}", "noncommittal": int("know" in given["response"])}
    raise ValueError(prompt)


def reply(content):
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "rules",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }


def answer(body):
    prompt = next(message["content"] for message in body["messages"] if message["role"] == "user")
    said = judged(prompt)
    if said is not None:
        return json.dumps(said)
    first = re.search(r"\[1\] (.*)", prompt)
    return first[1] if first else f"you said {prompt}"


def application(chat):
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def completions(request: Request):
        body = await request.json()
        chat.bodies.append(body)
        chat.headers.append(dict(request.headers))
        chat.times.append(time.monotonic())
        chat.at_once += 1
        chat.most_at_once = max(chat.most_at_once, chat.at_once)
        try:
            await asyncio.sleep(chat.delay)
            return await outcome(body)
        finally:
            chat.at_once -= 1

    async def outcome(body):
        fault = chat.fault(json.dumps(body["messages"], ensure_ascii=False))
        if fault is None:
            return JSONResponse(reply(answer(body)))
        if fault.kind == "malformed":
            return JSONResponse(reply('{"verdict": perhaps'))
        if fault.kind == "html":
            return PlainTextResponse("<html>busy</html>")
        if fault.kind == "stall":
            await asyncio.sleep(2.0)
            return JSONResponse(reply("too late"))
        if fault.kind == "drip":
            return StreamingResponse(drip())
        if fault.kind == "drop":
            return StreamingResponse(cut(), headers={"content-length": "1000"})
        headers = {"retry-after": fault.retry_after} if fault.retry_after else {}
        return PlainTextResponse(fault.body, status_code=int(fault.kind), headers=headers)

    return app


async def drip():
    """A body that is never idle for long, and is done in half a minute."""
    for _ in range(300):
        yield b" "
        await asyncio.sleep(0.1)


async def cut():
    """Half a body, then the connection is closed."""
    yield b'{"choices": ['
    raise ConnectionAbortedError


@contextlib.contextmanager
def running():
    """A server in a thread; yields its `Chat`."""
    chat = Chat()
    config = uvicorn.Config(
        application(chat), host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        chat.url = f"http://127.0.0.1:{port}/v1"
        yield chat
    finally:
        server.force_exit = server.should_exit = True
        thread.join(5)
