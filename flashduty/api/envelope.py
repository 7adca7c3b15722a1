"""The one shape of every answer of the Open API and the ingest doors: `{request_id, data}` or `{request_id, error: {code, message}}`.

Clients depend on details of it: success is exactly 200 and has no `error` at all; what does not exist is 404 (the Terraform provider
takes only that for "gone"), although the reference's page says 400; a wrong method is 400; nothing is ever redirected, since Go turns
a redirected POST into a GET; and a base URL with a slash at its end makes paths that begin with two.
"""

import json
import logging
import math
import uuid
from collections.abc import Callable
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, re_path
from django.utils.translation import gettext as _
from rest_framework.request import Request
from rest_framework.views import APIView

from escalation.lifecycle import Refused
from flashduty import body

log = logging.getLogger(__name__)

STATUSES = {
    "InvalidParameter": 400,
    "InvalidContentType": 400,
    "MethodNotAllowed": 400,
    "Unauthorized": 401,
    "AccessDenied": 403,
    "RouteNotFound": 404,
    "ResourceNotFound": 404,
    "RequestEntityTooLarge": 413,
    "RequestTooFrequently": 429,
    "InternalError": 500,
    "ServiceUnavailable": 503,
}


class ApiError(Exception):
    """An answer that is not 200: a code of `STATUSES` and a sentence that names the field and the fix; `retry_after` in seconds."""

    def __init__(self, code: str, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or STATUSES[code]
        self.retry_after = retry_after


def success(data: Any) -> HttpResponse:
    """200 with `data`; never None, which crashes the Terraform provider nearly everywhere."""
    return _answer({"data": data}, 200)


def failure(error: ApiError) -> HttpResponse:
    """The error's status and envelope."""
    response = _answer({"error": {"code": error.code, "message": error.message}}, error.status)
    if error.retry_after is not None:
        response["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return response


def _answer(said: dict[str, Any], status: int) -> HttpResponse:
    request_id = uuid.uuid4().hex
    text = json.dumps({"request_id": request_id, **said}, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
        "utf-8", "replace"
    )
    response = HttpResponse(text, content_type="application/json", status=status)
    response["Content-Length"] = str(len(text))  # pushes pass by the middleware that adds it, and without it the answer comes in chunks
    response["Flashcat-Request-Id"] = request_id
    return response


def refused(error: Refused) -> ApiError:
    """How a refused move is said on the wire."""
    return ApiError("ResourceNotFound" if error.code == "not_found" else "InvalidParameter", error.message)


def translate(error: Exception) -> ApiError:
    """Any exception as an answer; what nobody foresaw is logged and says nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        return refused(error)
    if isinstance(error, Http404):
        return ApiError("ResourceNotFound", _("There is nothing here by that id."))
    if isinstance(error, SuspiciousOperation):
        return ApiError("InvalidParameter", _("This request cannot be read."))
    if isinstance(error, (OperationalError, InterfaceError)):
        log.error("the database did not answer: %s", type(error).__name__)
        return ApiError("ServiceUnavailable", _("The database does not answer just now: send this again."), retry_after=1)
    log.error("a request failed", exc_info=error)
    return ApiError("InternalError", _("Something went wrong here. It has been logged."))


def body_of(request: HttpRequest, most: int) -> bytes:
    """The body, at most `most` bytes; ApiError where it is longer or broke off."""
    try:
        return body.read(request, most)
    except body.TooLarge:
        message = _("body is larger than %(most)d bytes: send less in one request") % {"most": most}
        raise ApiError("RequestEntityTooLarge", message) from None
    except OSError:
        raise ApiError("InvalidParameter", _("body ended before all of it had come.")) from None


class Door(APIView):
    """A view that answers in the envelope. It is POST only, reads no cookie and has no content negotiation; subclasses write `post`."""

    authentication_classes: list[type] = []
    permission_classes: list[type] = []
    http_method_names = ["post", "options"]

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[Any, str]:
        return self.renderer_classes[0](), "application/json"

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        return failure(translate(exc))

    def http_method_not_allowed(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponse:  # type: ignore[override]
        return failure(ApiError("MethodNotAllowed", _("Send this request with POST.")))


def route(path: str, view: Callable[..., Any], name: str) -> URLPattern:
    """A URL of the API: any number of slashes before it and one after it are the same address, so nobody needs a redirect."""
    return re_path(rf"^/*{path}/?$", view, name=name)
