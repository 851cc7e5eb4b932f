"""The page's addresses. No answer is cached, and the page may ask no other host."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, StringConstraints
from pydantic import Field as Limited

from brgsa.checkpoint import phantom_warning
from brgsa.errors import UserError
from brgsa_platform.serving.page import uploads
from brgsa_platform.serving.page.desk import Desk

PAGE = Path(__file__).with_name("page.html")
STATUS = {"upload-too-large": 413, "scan-gone": 404, "upload-type": 415, "disk": 507}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# A type that another site's page cannot send without asking first, which is never granted.
UPLOAD = "application/octet-stream"

Hu = Annotated[float, Query(ge=-10_000, le=10_000)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class Asked(BaseModel):
    """Prompts to score; none: those of the checkpoint's labels."""

    prompts: Annotated[list[Prompt], Limited(max_length=100)] = []


class Shown(BaseModel):
    """A prompt whose support is shown."""

    prompt: Prompt


def make_app(desk: Desk, limit: int, hosts: list[str]) -> FastAPI:
    """The page over a desk.

    Args:
        limit: bytes of an upload.
        hosts: the names by which the page may be asked for; a foreign name that points here is not answered.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _guard(app, hosts)

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @app.get("/model")
    def model() -> dict[str, Any]:
        run = desk.scorer.run
        return {"prompts": desk.scorer.texts, "limit": limit, "caution": phantom_warning(run)}

    @app.post("/scans")
    async def upload(request: Request) -> dict[str, Any]:
        if request.headers.get("content-type") != UPLOAD:
            raise UserError(f"Send the file as {UPLOAD}.", code="upload-type")
        if int(request.headers.get("content-length") or 0) > limit:
            raise uploads.too_large(limit)
        with tempfile.TemporaryDirectory(prefix="brgsa-upload-") as folder:
            file = Path(folder) / "upload"
            await uploads.receive(request.stream(), file, limit)
            return await run_in_threadpool(lambda: desk.open(uploads.as_scan(file, limit)))

    @app.delete("/scans/{key}")
    def close(key: str) -> None:
        desk.close(key)

    @app.post("/scans/{key}/scores")
    def scores(key: str, asked: Asked) -> list[dict[str, Any]]:
        return desk.scores(key, asked.prompts)

    @app.post("/scans/{key}/maps")
    def map_of(key: str, shown: Shown) -> dict[str, Any]:
        return desk.map(key, shown.prompt)

    @app.get("/scans/{key}/slices/{number}.png")
    def slice_of(key: str, number: int, low: Hu = -1000.0, high: Hu = 1000.0) -> Response:
        return Response(desk.slice(key, number, low, high), media_type="image/png")

    @app.get("/scans/{key}/maps/{made}/{number}.png")
    def heat(key: str, made: str, number: int) -> Response:
        return Response(desk.heat(key, made, number), media_type="image/png")

    return app


def _guard(app: FastAPI, hosts: list[str]) -> None:
    """What holds for every answer."""
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error), "code": error.code}, STATUS.get(error.code, 422))

    @app.exception_handler(OSError)
    async def failed(request: Request, error: OSError) -> JSONResponse:
        told = f"The server's disk does not take the scan ({error.strerror or type(error).__name__}): free space there."
        return await refused(request, UserError(told, code="disk"))
