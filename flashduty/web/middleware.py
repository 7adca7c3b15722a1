"""Pages speak the language and show the time zone of the member who is signed in."""

from collections.abc import Callable
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone, translation

from mapping.models import Member


class MemberLocaleMiddleware:
    """After AuthenticationMiddleware. A request without a session cookie (every alert source) costs nothing and reads no row."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        member = request.user if settings.SESSION_COOKIE_NAME in request.COOKIES else None
        # A SimpleLazyObject passes for what it wraps.
        if not isinstance(member, Member):
            return self.get_response(request)
        try:
            zone = ZoneInfo(member.time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            zone = ZoneInfo("UTC")  # this machine's list lacks it
        with translation.override(member.language), timezone.override(zone):
            request.LANGUAGE_CODE = translation.get_language()  # type: ignore[attr-defined]
            answer = self.get_response(request)
            answer.headers["Content-Language"] = translation.get_language() or settings.LANGUAGE_CODE
            return answer
