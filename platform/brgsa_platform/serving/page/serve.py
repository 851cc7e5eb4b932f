"""The page's server."""

from __future__ import annotations

from pathlib import Path

from brgsa_platform.runtime import console
from brgsa_platform.runtime.addresses import LOOPBACK, is_loopback
from brgsa_platform.serving.page.app import make_app
from brgsa_platform.serving.page.desk import Desk
from brgsa_platform.serving.scorer import ScanOptions, Scorer
from brgsa_platform.tracking.ui import check_free

MB = 1_000_000


def serve(
    checkpoint: Path | str,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_mb: int = 1000,
    *,
    trust_geometry: bool = False,
) -> None:
    """Serve the page until interrupted.

    Uploads are removed as soon as they are read; the scans are held in memory. Nothing is logged.

    Args:
        checkpoint: a checkpoint folder, or a run's (its best checkpoint).
        host: other than loopback, whoever reaches it can use the page: it has neither passwords nor encryption.
        max_mb: size of an upload, in megabytes.
        trust_geometry: see `ScanOptions`.

    Raises:
        UserError: the checkpoint cannot be used, or the port is taken ("cannot-listen").
    """
    import uvicorn

    check_free(host, port)
    scorer = Scorer(checkpoint)
    place = f"[{host}]" if ":" in host else host
    hosts = [*LOOPBACK, place]
    if not is_loopback(host):
        console.print_line(
            f"Caution: every machine that reaches {place}:{port} can send scans here, without a password, and what it sends "
            "travels unencrypted."
        )
        hosts = ["*"]
    console.print_line(f"{scorer.path} answers at http://{place}:{port} (Ctrl-C ends it).")
    app = make_app(Desk(scorer, ScanOptions(trust_geometry=trust_geometry)), max_mb * MB, hosts)
    uvicorn.run(app, host=host, port=port, access_log=False, log_level="error")
