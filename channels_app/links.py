"""The links in messages. To a person: a signed token that says who and about what. To a group: the incident's id, which identifies nobody."""

from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings

from mapping.crypto import sign, unsign

_PURPOSE = "page"


@dataclass(frozen=True, slots=True)
class Link:
    topic: int  # what it is about: the incident's id
    member_id: int
    issued: datetime


def person_link(topic: int, member_id: int, now: datetime) -> str:
    """The address of the signed page of one incident for one member. The page asks whether the member is active and the incident recent."""
    return f"{settings.BASE_URL}/i/{sign(f'{topic}-{member_id}-{int(now.timestamp())}', _PURPOSE)}/"


def group_link(hex_id: str) -> str:
    """The address of an incident's page without identity; `hex_id` is the API's id."""
    return f"{settings.BASE_URL}/i/{hex_id}/"


def read(token: str) -> Link:
    """What a person's link says; ValueError when we did not sign it."""
    value = unsign(token, _PURPOSE)
    topic, member_id, issued = value.split("-")
    return Link(int(topic), int(member_id), datetime.fromtimestamp(int(issued), UTC))
