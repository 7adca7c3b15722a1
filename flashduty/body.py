"""The body of a request that a program sends: whole, whether it came with its length or in chunks, and up to a limit."""

from typing import Final

from django.http import HttpRequest

_MOST_THROWN_AWAY: Final = 256 << 20
_CHUNK: Final = 1 << 16


class TooLarge(Exception):
    """The body is over its limit."""


def read(request: HttpRequest, most: int) -> bytes:
    """The body, at most `most` bytes. OSError where it broke off, TooLarge over the limit.

    What is over is read all the same and thrown away: to answer earlier breaks the sender's pipe.
    """
    stream = request
    if request.META.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked" and not request.META.get("CONTENT_LENGTH"):
        stream = request.META["wsgi.input"]  # Django takes a body without a length for an empty one
    body = bytes(stream.read(most + 1))
    if len(body) <= most:
        return body
    thrown_away = 0
    while thrown_away < _MOST_THROWN_AWAY and (chunk := stream.read(_CHUNK)):
        thrown_away += len(chunk)
    raise TooLarge
