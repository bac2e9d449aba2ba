"""Everything that goes over the wire to an OpenAI-compatible chat server: cache, budget, retries, counting.

In come a section, a cache folder and jobs that ask; out come answers, or None where one failed. Two kinds of
asker share one way out: `Session.chat` for plain answers, and `Session.client`, an httpx client that another
library (openai, and so ragas) is handed. It does not know what is asked, nor what an answer means.

What is kept in the cache folder: every good reply, under a hash of the URL's path and the request's JSON (never of
the key), and `calls`, the tally of the budget. The key itself is read from the environment, goes into the
request's header, and is neither stored nor told.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import importlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rankwright.core import content_hash
from rankwright.errors import ConfigError, MissingExtraError, RankwrightError
from rankwright.sections import EndpointSection
from rankwright.toolbox import progress
from rankwright.workspace import disk_errors, write_text

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Message = Mapping[str, str]
"""`{"role": …, "content": …}`, as the chat API takes it."""

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_WRONG = frozenset({301, 302, 307, 308, 401, 404, 405})
"""Statuses that speak of the section (address, key, model), not of one request, if nothing was answered before."""
_THIS_ALONE = frozenset({400, 413, 422})
"""Statuses that are about one request: too long, or not to the server's liking."""
_LONGEST_PAUSE = 60.0
_SEEMS_DOWN = 10
"""Requests given up in a row. If none was ever answered, the run ends; else each gets one try until one is."""
_REFUSED = re.compile(r"(?=.*(?:max_tokens|temperature)).*(?:unsupported|not support)", re.DOTALL | re.IGNORECASE)
"""What a model that takes no temperature, or another name for the limit, says: not what a long prompt gets."""
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Spent:
    """What was asked so far, by this process.

    `calls` went over the wire (each try counts), `cached` were answered from the folder, `failed` are items that
    have no answer. Tokens are those that the server counted, of `calls` alone; 0 if it does not count.
    """

    calls: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class GaveUpError(Exception):
    """One request has no answer. `reason` is short and one of few, to be counted; `status` is HTTP's, or None."""

    def __init__(self, reason: str, *, status: int | None = None, detail: str = "") -> None:
        self.reason, self.status, self.detail = reason, status, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class BudgetSpentError(GaveUpError):
    """One request was not sent, since `max_calls` were made."""

    def __init__(self, max_calls: int) -> None:
        super().__init__("budget spent", detail=f"max_calls is {max_calls}")


@dataclass(frozen=True)
class _Trouble:
    """Why one try failed, whether another may help, and what the server said about when (seconds)."""

    reason: str
    again: bool = True
    status: int | None = None
    detail: str = ""
    wait: float | None = None


class Endpoint:
    """One server, one cache folder, one budget. Lives through many event loops; one `gather` at a time.

    The budget: `calls` in the folder holds one `.` per try, written before the try is sent, so that a killed run has
    counted it, and a `-` for each that is given back since no connection came about. All runs count together.
    Replies from the cache are free.
    """

    def __init__(self, section: EndpointSection, folder: Path, *, pause: float = 1.0, seed: int = 0) -> None:
        """`pause`: seconds before the first retry, doubled for each further one; `seed`: of their jitter.

        Raises:
            ConfigError: `base_url` is no http address.
            MissingExtraError: there is no httpx.
        """
        _check_address(section.base_url)
        self.section, self.folder, self.pause, self.seed = section, folder, pause, seed
        self.http = http_library()
        self.key = _Secret(_key(section.key_from))
        self.spent = Spent()
        self.reasons: Counter[str] = Counter()
        """Why items failed: `timed out`, `HTTP 500`, `budget spent`, … -> how many."""
        self.fatal: RankwrightError | None = None
        """Set once no further request can succeed."""
        self.answered = False
        self.in_a_row = 0
        """Requests given up since the last answer."""
        self.reasoner = False
        """The model takes no temperature, and `max_completion_tokens`; found out by asking."""
        self._tally = folder / "calls"
        marks = self._tally.read_bytes() if self._tally.exists() else b""
        self._used = marks.count(b".") - marks.count(b"-")

    @property
    def left(self) -> int:
        """Calls that may still be made."""
        return max(0, self.section.max_calls - self._used)

    def gather(
        self, start: Callable[[Session], Callable[[Item], Awaitable[Answer | None]]], items: Sequence[Item], what: str
    ) -> list[Answer | None]:
        """Ask about every item, at most `concurrency` at a time, under a progress bar called `what`.

        `start` is called once, within the event loop, and gives the function that asks about one item. Items that
        raise or yield None become None, and are counted with their reason. Works where a loop is running already.

        Raises:
            ConfigError: no request can succeed: nobody is there, the address, key or model is wrong, or the first
                ten requests of this process were all given up.
            DiskError: the cache cannot be written.
        """
        answers: list[Answer | None] = [None] * len(items)

        async def work() -> None:
            async with self.session() as session:
                ask, pending = start(session), iter(range(len(items)))
                with progress.bar(what, len(items), "items") as advance:

                    async def worker() -> None:
                        for index in pending:
                            answers[index] = await self._one(ask, items[index])
                            advance(1)
                            if self.fatal:
                                return

                    await asyncio.gather(*(worker() for _ in range(self.section.concurrency)))
            if self.fatal:
                raise self.fatal

        if items:
            run_anywhere(work)
        return answers

    def chats(self, conversations: Sequence[Sequence[Message]], what: str) -> list[str | None]:
        """One answer per conversation, in order; None where it failed. Raises as `gather` does."""
        return self.gather(lambda session: session.chat, conversations, what)

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """The way out for as long as one event loop runs."""
        async with self.http.AsyncClient(timeout=self.section.timeout, follow_redirects=False) as wire:
            session = Session(self, wire)
            async with session.client:
                yield session

    async def _one(self, ask: Callable[[Item], Awaitable[Answer | None]], item: Item) -> Answer | None:
        try:
            answer = await ask(item)
            reason = "no value"
        except Exception as error:  # whatever another library makes of a bad reply fails this one item
            answer, reason = None, _reason(error)
        if answer is None:
            self.reasons[reason] += 1
            self.count(failed=1)
        return answer

    def count(self, **more: int) -> None:
        """Add to the fields of `spent`."""
        self.spent = replace(self.spent, **{name: getattr(self.spent, name) + count for name, count in more.items()})

    def charge(self) -> None:
        """Take one call from the budget.

        Raises:
            BudgetSpentError: there is none left.
        """
        if not self.left:
            raise BudgetSpentError(self.section.max_calls)
        self._mark(b".", 1)

    def give_back(self) -> None:
        """Undo a `charge`: no connection came about, so the server has not done anything."""
        self._mark(b"-", -1)

    def _mark(self, mark: bytes, calls: int) -> None:
        with disk_errors(self._tally):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._tally.open("ab") as file:
                file.write(mark)
        self._used += calls
        self.count(calls=calls)

    def kept(self, key: str) -> dict[str, Any] | None:
        """The reply that is kept under `key`; None if there is none, or none that can be read."""
        try:
            return good_reply(self._place(key).read_bytes())
        except OSError:
            return None

    def keep(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep a reply, whole or not at all."""
        with disk_errors(self.folder):
            write_text(self._place(key), json.dumps(reply, ensure_ascii=True))

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


class Session:
    """An endpoint within one event loop. `client` is for libraries that take an httpx `AsyncClient`."""

    def __init__(self, endpoint: Endpoint, wire: Any) -> None:
        self._endpoint, self._wire, self._http = endpoint, wire, endpoint.http
        self._slots = asyncio.Semaphore(endpoint.section.concurrency)
        self._busy: dict[str, asyncio.Lock] = {}
        self.client: Any = self._http.AsyncClient(transport=_Transport(self), timeout=None)

    async def chat(self, messages: Sequence[Message]) -> str | None:
        """The model's answer, at temperature 0; None if it is empty. What it thought aloud in front is left out.

        Models that refuse `temperature` and `max_tokens` (HTTP 400 that names one) are asked again without.

        Raises:
            GaveUpError: there is none.
        """
        url, knew = self._endpoint.section.base_url.rstrip("/") + "/chat/completions", self._endpoint.reasoner
        try:
            reply = await self.reply(url, self._body(messages))
        except GaveUpError as error:
            refused = error.status == 400 and _REFUSED.search(error.detail)
            if knew or not refused:
                raise
            self._endpoint.reasoner = True
            reply = await self.reply(url, self._body(messages))
        content = reply["choices"][0]["message"].get("content")
        return _THOUGHTS.sub("", content).strip() or None if isinstance(content, str) else None

    def _body(self, messages: Sequence[Message]) -> dict[str, Any]:
        section = self._endpoint.section
        body: dict[str, Any] = {"model": section.model, "messages": [dict(message) for message in messages]}
        if self._endpoint.reasoner:
            return {**body, "max_completion_tokens": section.max_tokens}
        return {**body, "temperature": 0, "max_tokens": section.max_tokens}

    async def reply(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's reply to one request, from the cache if it is there. Equal requests wait for each other.

        Raises:
            GaveUpError: all tries failed, or one that no other try can mend.
            BudgetSpentError: it was not sent.
            RankwrightError: as `Endpoint.fatal`.
        """
        endpoint, canonical = self._endpoint, json.dumps(body, sort_keys=True)
        key = content_hash([_address(url), canonical])
        async with self._busy.setdefault(key, asyncio.Lock()):
            kept = endpoint.kept(key)
            if kept is not None:
                endpoint.count(cached=1)
                endpoint.answered = True  # once: this is the right server, whatever it refuses now
                return kept
            try:
                async with self._slots:
                    reply = await self._tries(url, canonical, key)
                if _says_something(reply):  # else it may next time
                    endpoint.keep(key, reply)
            except RankwrightError as error:
                endpoint.fatal = error
                raise
        return reply

    async def _tries(self, url: str, body: str, key: str) -> dict[str, Any]:
        endpoint = self._endpoint
        if endpoint.fatal:
            raise endpoint.fatal
        tries = 1 if endpoint.in_a_row >= _SEEMS_DOWN else 1 + endpoint.section.retries
        trouble = _Trouble("not tried")
        for number in range(tries):
            if number:
                await asyncio.sleep(self._pause(trouble, key, number - 1))
            outcome = await self._try(url, body)
            if not isinstance(outcome, _Trouble):
                endpoint.answered, endpoint.in_a_row = True, 0
                return outcome
            trouble = outcome
            if not trouble.again:
                break
        alone = trouble.status in _THIS_ALONE
        if not alone or not (endpoint.answered or _REFUSED.search(trouble.detail)):  # which `chat` asks again
            endpoint.in_a_row += 1
        raise self._give_up(trouble)

    async def _try(self, url: str, body: str) -> dict[str, Any] | _Trouble:
        endpoint, http = self._endpoint, self._http
        endpoint.charge()
        call = self._wire.post(url, content=body.encode(), headers=endpoint.key.headers())
        try:
            # httpx's own limits are per read: a server that sends a byte now and then would never reach them
            response = await asyncio.wait_for(call, endpoint.section.timeout)
        except (http.ConnectError, http.ConnectTimeout, http.UnsupportedProtocol):
            endpoint.give_back()
            return _Trouble("no connection")
        except (asyncio.TimeoutError, http.TimeoutException):
            return _Trouble("timed out")
        except (http.TransportError, http.DecodingError):
            return _Trouble("connection lost")
        return self._read(response)

    def _read(self, response: Any) -> dict[str, Any] | _Trouble:
        status = int(response.status_code)
        if not 200 <= status < 300:
            detail = self._endpoint.key.hidden(response.text)[:300]
            again = status in _AGAIN or status >= 500
            return _Trouble(f"HTTP {status}", again, status, detail, _retry_after(response.headers))
        reply = good_reply(response.content)
        if reply is None:
            return _Trouble("unreadable reply", status=status)
        usage = reply.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        tokens = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        self._endpoint.count(**{name: count for name, count in tokens.items() if isinstance(count, int)})
        return reply

    def _pause(self, trouble: _Trouble, key: str, number: int) -> float:
        """Seconds to the next try: what the server asks for, or 1/2 to 1 of a limit that doubles; at most a minute."""
        if trouble.wait is not None:
            return min(trouble.wait, _LONGEST_PAUSE)
        jitter = random.Random(f"{self._endpoint.seed}:{key}:{number}").uniform(0.5, 1.0)
        return min(self._endpoint.pause * 2.0**number, _LONGEST_PAUSE) * jitter

    def _give_up(self, trouble: _Trouble) -> Exception:
        """The error to raise: for this request alone, or, if nothing was ever answered, for all."""
        section = self._endpoint.section
        if not self._endpoint.answered:
            if trouble.reason == "no connection":
                return ConfigError(f"nobody answers at {section.base_url}", where="rag.endpoint", hint="is it running?")
            if trouble.status in _WRONG or self._endpoint.in_a_row >= _SEEMS_DOWN:
                said = f"{section.base_url} does not answer for the model {section.model!r}: {trouble.reason}"
                hint = f"see base_url, model, timeout, and the key in ${section.key_from}"
                return ConfigError(f"{said} {trouble.detail}".rstrip(), where="rag.endpoint", hint=hint)
        return GaveUpError(trouble.reason, status=trouble.status, detail=trouble.detail)


class _Transport:
    """What `Session.client` sends by: httpx's transport interface, which asks for no base class."""

    def __init__(self, session: Session) -> None:
        self._session, self._http = session, session._http

    async def handle_async_request(self, request: Any) -> Any:
        if request.method != "POST" or not request.url.path.endswith("/chat/completions"):
            raise GaveUpError("not a chat completion", detail=f"{request.method} {request.url.path}")
        body = json.loads(await request.aread())
        reply = await self._session.reply(str(request.url), body)
        return self._http.Response(200, json=_without_thoughts(reply), request=request)

    async def aclose(self) -> None:
        """Nothing of its own to close."""

    async def __aenter__(self) -> _Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Secret:
    """The key: it can be sent, and blanked out of what a server says. It shows in no repr."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "_Secret(***)" if self._value else "_Secret(unset)"

    def headers(self) -> dict[str, str]:
        """The headers of a request."""
        plain = {"content-type": "application/json"}
        return {**plain, "authorization": f"Bearer {self._value}"} if self._value else plain

    def hidden(self, text: str) -> str:
        """`text`, without the key."""
        return text.replace(self._value, "***") if self._value else text


def _check_address(url: str) -> None:
    """Refuse what cannot be asked, or would be written down with a password in it."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, brackets that do not close
        usable = False
    where, hint = "rag.endpoint.base_url", "http://localhost:8000/v1"
    if not usable:
        raise ConfigError(f"{url!r} is no http address", where=where, hint=hint)
    if parts.username or parts.password:
        raise ConfigError("the address holds a user or a password", where=where, hint="put the key into key_from")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key in ${variable} holds characters that no header can carry", where="rag.endpoint")
    return key


def _address(url: str) -> str:
    """Who is asked what: another host or port is another server."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port}{parts.path}"


def _says_something(reply: Mapping[str, Any]) -> bool:
    message = reply["choices"][0]["message"]
    content = message.get("content")
    return bool(message.get("tool_calls")) or (isinstance(content, str) and not content.isspace() and content != "")


def _without_thoughts(reply: dict[str, Any]) -> dict[str, Any]:
    """The reply without what the model thought aloud in front of its answer."""
    first, *rest = reply["choices"]
    content = first["message"].get("content")
    if not isinstance(content, str):
        return reply
    message = {**first["message"], "content": _THOUGHTS.sub("", content)}
    return {**reply, "choices": [{**first, "message": message}, *rest]}


def http_library() -> Any:
    """The module `httpx`, or `httpx2`, its successor of the same interface: whichever is there.

    Raises:
        MissingExtraError: neither.
    """
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise MissingExtraError("asking a language model needs httpx", hint="pip install 'rankwright[rag]'")


def good_reply(raw: bytes) -> dict[str, Any] | None:
    """A chat completion as JSON: an object whose `choices` start with one that has a `message`. None if it is not."""
    try:
        reply = json.loads(raw)
        return reply if isinstance(reply["choices"][0]["message"], dict) else None
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def run_anywhere(work: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """Run to the end, also where an event loop is at work already, as in notebooks: then in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `Retry-After`: a number, or a date (RFC 9110, 10.2.3)."""
    said = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", said):
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _reason(error: BaseException) -> str:
    """Why an item failed: what was the matter at the wire, however it is wrapped; else the reply was no good."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        if isinstance(link, GaveUpError):
            return link.reason
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return f"unusable reply ({type(error).__name__})"
