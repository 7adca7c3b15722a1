"""Signing in, at most so often: ten tries an account and thirty an address in ten minutes. An account that does not exist is answered alike."""

import ipaddress
import math
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import F
from django.http import HttpRequest
from django.utils.translation import gettext_lazy, ngettext
from unfold.forms import AuthenticationForm

from mapping.clock import db_now
from mapping.crypto import fingerprint
from mapping.models import Throttle

WINDOW = timedelta(minutes=10)
PER_ACCOUNT = 10
PER_ADDRESS = 30


def address_of(request: HttpRequest) -> str:
    """The client's address (of IPv6, its network): of the connection, or, where a proxy of ours is trusted, the one that proxy saw (the last it wrote down)."""
    address = request.META.get("REMOTE_ADDR", "")
    if settings.SECURE_PROXY_SSL_HEADER:
        address = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip() or address
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:60]
    if isinstance(found, ipaddress.IPv6Address):
        # Whoever has one address of IPv6 has a whole /64 of them, and with each would begin anew.
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class SignInForm(AuthenticationForm):
    """The console's sign-in. Tries are counted before the password is looked at, so that parallel ones count too; only failures remain."""

    error_messages = {
        **AuthenticationForm.error_messages,
        "invalid_login": gettext_lazy("E-mail and password do not match an active account."),
    }

    def clean(self) -> dict[str, Any]:
        now = db_now()
        # In upper case, as the database compares (`iexact`): for it "ı" and "i" are one letter, and each spelling would have tries of its own.
        account = f"login:account:{fingerprint(self.cleaned_data.get('username', '').strip().upper())}"
        address = f"login:address:{address_of(self.request)}"
        # Both are counted, whichever says no: a guesser who changes accounts meets the address's limit.
        allowed = [Throttle.hit(address, PER_ADDRESS, WINDOW, now), Throttle.hit(account, PER_ACCOUNT, WINDOW, now)]
        if not all(allowed):
            ends = Throttle.objects.filter(key__in=[account, address]).values_list("key", "window_end")
            until = max(end for key, end in ends if not allowed[0 if key == address else 1])
            minutes = max(math.ceil((until - now).total_seconds() / 60), 1)
            raise ValidationError(
                ngettext("Too many tries. Try again in %(minutes)d minute.", "Too many tries. Try again in %(minutes)d minutes.", minutes)
                % {"minutes": minutes},
                code="throttled",
            )
        data = super().clean()  # raises when they do not match
        Throttle.clear(account)
        # A success gives its try back to the address; an office behind one address may sign in as often as it likes.
        Throttle.objects.filter(key=address, count__gt=0).update(count=F("count") - 1)
        return data
