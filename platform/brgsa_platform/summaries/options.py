"""How a language model is reached, what it may see and cost, and what becomes of statements without support."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from brgsa.errors import UserError
from brgsa.summaries.llm.grounding import POLICIES
from brgsa_platform.runtime.addresses import has_credentials

ENDPOINT_VARIABLE = "BRGSA_LLM_ENDPOINT"
KEY_VARIABLE = "BRGSA_LLM_KEY"


@dataclass(frozen=True)
class LlmOptions:
    """Options of `summarize` for styles that a language model writes.

    Attributes:
        endpoint: URL of an OpenAI-compatible API, up to and with its version ("http://127.0.0.1:8000/v1").
        key_file: file with the endpoint's key; default the environment variable BRGSA_LLM_KEY.
        allow_remote: reports may be sent to another machine.
        mask: replace names, dates, phone and record numbers before sending; None: where the endpoint is another machine.
        concurrency: requests at a time, or actors of a local model.
        rate: the largest number of requests a minute; None for no limit of ours.
        timeout: seconds that one answer may take.
        patience: seconds that a request is tried again while the endpoint is away or busy.
        answer_tokens: the longest answer.
        batch: reports that a local model reads at a time.
        price: cost of a million tokens sent, and of a million answered; one currency throughout.
        max_cost: stop before more is spent in this run.
        cache: folder or URL where answers are kept; default `answers` in the store.
        unread: take the model's word for reports in other languages, which cannot be checked; else they stay unread.
        flagged: what becomes of statements without support: "replace", "drop" or "keep".
    """

    endpoint: str | None = None
    key_file: Path | None = None
    allow_remote: bool = False
    mask: bool | None = None
    concurrency: int = 8
    rate: float | None = None
    timeout: float = 120.0
    patience: float = 300.0
    answer_tokens: int = 800
    batch: int = 8
    price: tuple[float, float] = (0.0, 0.0)
    max_cost: float | None = None
    cache: str | None = None
    unread: bool = False
    flagged: str = "replace"

    def __post_init__(self) -> None:
        if self.flagged not in POLICIES:
            raise UserError(
                f"--flagged cannot be {self.flagged!r}: choose one of {', '.join(POLICIES)}.",
                code="bad-option",
                field="--flagged",
                value=self.flagged,
            )
        if self.max_cost is not None and not any(self.price):
            raise UserError(
                "--max-cost needs --price, the cost of a million tokens sent and of a million answered.",
                code="bad-option",
                field="--price",
                value=self.price,
            )

    def endpoint_url(self) -> str:
        """The endpoint, checked.

        Raises:
            UserError: none is given ("no-endpoint"), it is no http URL or holds a password ("bad-endpoint"), or it is another
                machine's without `allow_remote` ("remote-endpoint").
        """
        url = (self.endpoint or os.environ.get(ENDPOINT_VARIABLE) or "").rstrip("/")
        if not url:
            raise UserError(
                f"This style asks a language model: give its --endpoint, or set {ENDPOINT_VARIABLE}.",
                code="no-endpoint",
                field="--endpoint",
            )
        if has_credentials(url) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UserError(
                "--endpoint must be an http:// or https:// URL without a user and password in it.",
                code="bad-endpoint",
                field="--endpoint",
            )
        if is_remote(url) and not self.allow_remote:
            raise UserError(
                f"{urlsplit(url).hostname} is another machine: reports of patients go there only with --allow-remote.",
                code="remote-endpoint",
                field="--allow-remote",
                value=urlsplit(url).hostname,
            )
        return url

    def masks(self) -> bool:
        """Whether reports are masked before they are sent."""
        if self.mask is not None:
            return self.mask
        url = self.endpoint or os.environ.get(ENDPOINT_VARIABLE) or ""
        return bool(url) and is_remote(url)

    def key(self) -> str:
        """The endpoint's key; "" where it needs none.

        Raises:
            UserError: its file cannot be read ("key-unreadable").
        """
        if self.key_file is None:
            return os.environ.get(KEY_VARIABLE, "").strip()
        try:
            return self.key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The key in {self.key_file} cannot be read: correct --api-key-file.",
                code="key-unreadable",
                field="--api-key-file",
                value=str(self.key_file),
            ) from error


def is_remote(url: str) -> bool:
    """Whether a URL's host is another machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
