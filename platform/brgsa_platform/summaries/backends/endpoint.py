"""Any OpenAI-compatible endpoint: vLLM, SGLang, Ollama, llama.cpp, a cloud."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import tenacity

from brgsa.errors import UserError
from brgsa.summaries.llm.claims import EMPTY, NOT_JSON, read_answer
from brgsa.summaries.llm.prompts import messages, schema
from brgsa.summaries.styles import Style
from brgsa_platform.summaries.backends import NO_ANSWER, Answer, named_model
from brgsa_platform.summaries.options import LlmOptions, is_remote
from brgsa_platform.summaries.spending import Spending, estimated_tokens

TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}
OF_THE_QUESTION = {400, 413, 422}  # the endpoint refuses what it was asked, not who asks
LONGEST_PAUSE = 30.0  # seconds between two tries, where the endpoint does not say
AGAIN = "That was not the form asked for. Answer again, with that JSON and nothing else."


class _Away(Exception):
    """The endpoint may answer later."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.pause = reason, pause


class _Refused(Exception):
    """The endpoint does not answer this question."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class _LimitReached(Exception):
    """The next question might pass the spending limit."""


class EndpointBackend:
    """See `Backend`."""

    def __init__(self, style: Style, options: LlmOptions, spending: Spending) -> None:
        self.model = named_model(style, "as the endpoint knows it")
        self.spending = spending
        self._style, self._options = style, options
        self._url, self._key = options.endpoint_url(), options.key()
        self._schema = True  # until the endpoint refuses it
        self._answered = False
        self._not_before = 0.0  # of time.monotonic(); the whole run waits where one request was told to

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """See `Backend`."""
        with asyncio.Runner() as runner:
            answers = self._answers(texts)

            async def following() -> tuple[int, Answer] | None:
                return await anext(answers, None)

            try:
                while (answer := runner.run(following())) is not None:
                    yield answer
            finally:
                runner.run(_closed(answers))

    async def _answers(self, texts: Sequence[str]) -> AsyncIterator[tuple[int, Answer]]:
        """Keeps `concurrency` requests under way. After a failure it asks no more, gives what is still answered, and raises."""
        options, failure = self._options, None
        waiting, pending = iter(enumerate(texts)), set[asyncio.Task[tuple[int, Answer]]]()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=options.concurrency)
        # A proxy of the environment would carry what is to stay on this machine.
        client = httpx.AsyncClient(
            headers=headers, timeout=options.timeout, limits=limits, trust_env=is_remote(self._url)
        )
        async with client:
            try:
                while True:
                    while failure is None and len(pending) < options.concurrency and (one := next(waiting, None)):
                        pending.add(asyncio.create_task(self._numbered(client, *one)))
                    if not pending:
                        break
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        if (error := task.exception()) is None:
                            yield task.result()
                        elif failure is None or isinstance(failure, _LimitReached):
                            failure = error
            finally:
                for task in pending:
                    task.cancel()
                await asyncio.gather(*pending, return_exceptions=True)
        if failure is not None:
            raise self._told(failure)

    async def _numbered(self, client: httpx.AsyncClient, number: int, text: str) -> tuple[int, Answer]:
        try:
            return number, await self._ask(client, text)
        except _Refused as refused:
            if refused.status in OF_THE_QUESTION and self._answered:
                return number, NO_ANSWER  # too long for this endpoint, say: one report's trouble, not the run's
            raise

    async def _ask(self, client: httpx.AsyncClient, text: str) -> Answer:
        """The answer to a text; one that is no JSON is asked for once more."""
        chat = messages(self._style, text)
        first = await self._paid(client, chat)
        if read_answer(first.content, self._style).fault not in (EMPTY, NOT_JSON):
            return first
        again = [*chat, {"role": "assistant", "content": first.content}, {"role": "user", "content": AGAIN}]
        try:
            second = await self._paid(client, again)
        except (_LimitReached, _Refused):
            return first
        better = first if read_answer(second.content, self._style).fault in (EMPTY, NOT_JSON) else second
        return better._replace(sent=first.sent + second.sent, answered=first.answered + second.answered)

    async def _paid(self, client: httpx.AsyncClient, chat: list[dict[str, str]]) -> Answer:
        most = estimated_tokens("".join(one["content"] for one in chat)), self._options.answer_tokens
        if not self.spending.reserve(*most):
            raise _LimitReached
        try:
            answer = await self._tried(client, chat)
        except BaseException:
            self.spending.release(*most)
            raise
        self.spending.settle(*most, answer.sent or most[0], answer.answered)
        self._answered = True
        return answer

    async def _tried(self, client: httpx.AsyncClient, chat: list[dict[str, str]]) -> Answer:
        """The answer, tried again while the endpoint is away or busy."""
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Away),
            stop=tenacity.stop_before_delay(self._options.patience),
            wait=_pause,
            reraise=True,
        )
        async for attempt in tries:
            with attempt:
                with_schema = self._schema
                try:
                    return await self._once(client, chat, with_schema)
                except _Refused as refused:
                    known = self._schema and self._answered  # the endpoint has answered in the schema
                    if refused.status not in OF_THE_QUESTION or not with_schema or known:
                        raise
                    self._schema = False  # many endpoints know no JSON schema
                    return await self._once(client, chat, with_schema=False)
        raise AssertionError("tenacity ends with an answer or an exception")

    async def _once(self, client: httpx.AsyncClient, chat: list[dict[str, str]], with_schema: bool) -> Answer:
        await self._turn()
        body: dict[str, Any] = {
            "model": self.model,
            "messages": chat,
            "temperature": 0,
            "seed": 0,
            "max_tokens": self._options.answer_tokens,
        }
        if with_schema:
            form = {"name": "summary", "strict": True, "schema": schema(self._style)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            response = await client.post(f"{self._url}/chat/completions", json=body)
        except httpx.TimeoutException as error:
            raise _Away(f"no answer within {self._options.timeout:g} s") from error
        except httpx.TransportError as error:
            raise _Away(type(error).__name__) from error
        if response.status_code in TEMPORARY:
            pause = _retry_after(response.headers.get("Retry-After"))
            if pause is not None and pause <= self._options.patience:
                self._not_before = max(self._not_before, time.monotonic() + pause)
            raise _Away(f"HTTP {response.status_code}", pause)
        if response.status_code != 200:
            raise _Refused(response.status_code)
        return _answer(response)

    async def _turn(self) -> None:
        """Wait until a request may be sent, by the rate and by what the endpoint asked for."""
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self._options.rate:
            self._not_before = time.monotonic() + 60.0 / self._options.rate

    def _told(self, failure: BaseException) -> BaseException:
        """The failure as the user reads it; never with a body, which may hold a report or a key."""
        if isinstance(failure, _LimitReached):
            return UserError(
                f"The spending limit is reached: {self.spending.cost:.4f} of {self.spending.limit} are spent, and the next "
                "request might pass it. What was answered is kept: run it again with a higher --max-cost.",
                code="spending-limit",
                field="--max-cost",
                value=self.spending.limit,
            )
        if isinstance(failure, _Away):
            return UserError(
                f"The endpoint does not answer ({failure.reason}) for {self._options.patience:g} s: start it or correct "
                "--endpoint, and run it again; what was answered is kept.",
                code="endpoint-away",
                field="--endpoint",
                value=failure.reason,
            )
        if isinstance(failure, _Refused):
            return UserError(
                f"The endpoint refuses the request (HTTP {failure.status}): correct --model, --endpoint or the key.",
                code="endpoint-refused",
                field="--endpoint",
                value=failure.status,
            )
        return failure


async def _closed(answers: AsyncIterator[tuple[int, Answer]]) -> None:
    await answers.aclose()  # type: ignore[attr-defined]


def _answer(response: httpx.Response) -> Answer:
    try:
        tree = response.json()
        choice = tree["choices"][0]
        message = choice["message"]
        content = message.get("content") or message.get("refusal") or ""
        usage = tree.get("usage") or {}
        sent, answered = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Answer(
            str(content),
            choice.get("finish_reason") == "length",
            int(sent or 0),
            int(answered if answered is not None else estimated_tokens(str(content))),
        )
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise _Away("an answer that is none") from error


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which gives seconds or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    told = error.pause if isinstance(error, _Away) else None
    return told if told is not None else _backoff(state)
