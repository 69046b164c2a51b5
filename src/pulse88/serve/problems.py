"""What went wrong, as `application/problem+json` (RFC 9457) with a sentence for people."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is no success. `detail` says what, where, and what to do about it."""

    def __init__(self, status: int, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    def to_json(self, request_id: str = "") -> dict[str, Any]:
        """The body; `request` is the id that the log has, too."""
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return body | {"request": request_id} if request_id else body


class WorkerLost(Problem):
    """The worker died or was ended over this work, more often than it is tried."""

    def __init__(self, detail: str) -> None:
        super().__init__(500, detail)
