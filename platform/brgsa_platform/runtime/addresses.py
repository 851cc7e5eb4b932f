"""What an address tells: whether it is this machine's own, and whether it holds a password."""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.request
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# A name and password before "@"; of a web address a name alone too, which may be a token.
_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]+@|https?://[^/@\s]+@")
_QUERY = re.compile(r"(://[^?\s]*)\?\S*")


def is_loopback(address: str) -> bool:
    """Whether a HOST, HOST:PORT or URL is reached from its own machine only."""
    try:
        host = str(ipaddress.ip_address(address))  # an IPv6 address has colons too
    except ValueError:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reach_this_machine_directly() -> None:
    """Keep requests to this machine from a proxy, which cannot reach it, whatever http_proxy says."""
    for name in ("no_proxy", "NO_PROXY"):
        listed = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*listed, *(host for host in LOOPBACK if host not in listed)])


def proxy_of(url: str) -> str | None:
    """The proxy, without its password, through which a web address is reached; None where it is reached directly."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return without_credentials(proxy)


def has_credentials(text: str) -> bool:
    """Whether a text holds an address with a password, or a web address with a name: neither may be shown or passed on."""
    return _CREDENTIALS.search(text) is not None


def hide_credentials(text: str) -> str:
    """A text without the names and passwords of the addresses in it, and without their queries, which may hold one."""
    return _QUERY.sub(r"\1", _CREDENTIALS.sub(lambda found: found[0].partition("://")[0] + "://", text))


def without_credentials(url: str) -> str:
    """An address as it may stand on a screen: without name and password, and without a query, which may hold one."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.netloc else url
