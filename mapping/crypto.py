"""Secrets at rest: encrypted fields, one-way hashes to find a key by, and signed tokens for links that leave the house."""

import hashlib
import hmac
import json
import secrets
from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signing import BadSignature, TimestampSigner
from django.db import models


@lru_cache(maxsize=4)
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except ValueError:
        raise ImproperlyConfigured("FLASHDUTY_ENCRYPTION_KEYS must be 32 random bytes in URL-safe base64 each, comma-separated.") from None


def encrypt(text: str) -> str:
    """Encrypts with the newest key."""
    return _fernet(tuple(settings.ENCRYPTION_KEYS)).encrypt(text.encode()).decode()


@lru_cache(maxsize=4096)
def _decrypt(keys: tuple[str, ...], token: str) -> str:
    return _fernet(keys).decrypt(token.encode()).decode()


def decrypt(token: str) -> str:
    """Decrypts with whichever key made it; ValueError when none did (a key was removed before `rotate_secrets` ran)."""
    try:
        return _decrypt(tuple(settings.ENCRYPTION_KEYS), token)
    except InvalidToken:
        raise ValueError("This secret was encrypted with a key that is not in FLASHDUTY_ENCRYPTION_KEYS.") from None


def renewed(token: str) -> str | None:
    """The same secret under the newest key; None where it is under that one already. ValueError when no key opens it."""
    keys = tuple(settings.ENCRYPTION_KEYS)
    try:
        _fernet(keys[:1]).decrypt(token.encode())
        return None
    except InvalidToken:
        try:
            return _fernet(keys).rotate(token.encode()).decode()
        except InvalidToken:
            raise ValueError("No key of FLASHDUTY_ENCRYPTION_KEYS opens this secret.") from None


def fingerprint(secret: str) -> str:
    """A keyed hash (64 hex digits) to find a long random secret by, without storing it."""
    return hmac.new(b"flashduty.fingerprint", secret.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def new_secret(length: int = 32) -> str:
    """A random secret of `length` characters from [0-9a-zA-Z_-]."""
    return secrets.token_urlsafe(length)[:length]


class EncryptedTextField(models.TextField):
    """Text that is ciphertext in the database. It cannot be searched: keep a `fingerprint` beside it where it must be."""

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> str | None:
        return value if value in (None, "") else decrypt(value)

    def get_prep_value(self, value: Any) -> str | None:
        value = super().get_prep_value(value)
        return value if value in (None, "") else encrypt(value)


class EncryptedJSONField(models.TextField):
    """A JSON object that is ciphertext in the database."""

    _pyi_private_set_type: Any  # what the type checker lets an attribute of it be
    _pyi_private_get_type: Any

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        return {} if value in (None, "") else json.loads(decrypt(value))

    def to_python(self, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) and value else value

    def get_prep_value(self, value: Any) -> str:
        return "" if value in (None, {}, "") else encrypt(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    def value_to_string(self, obj: models.Model) -> str:
        return json.dumps(self.value_from_object(obj), ensure_ascii=False)


def sign(value: str, purpose: str) -> str:
    """A URL-safe signed token for `value`. SECRET_KEY signs django-q2's pickles, so links have keys of their own, the newest first."""
    return TimestampSigner(key=settings.LINK_KEYS[0], salt=f"flashduty.{purpose}", sep=".").sign(value)


def unsign(token: str, purpose: str, max_age: int | None = None) -> str:
    """The signed value; ValueError for a wrong, foreign or too old token (seconds)."""
    for key in settings.LINK_KEYS:
        try:
            return TimestampSigner(key=key, salt=f"flashduty.{purpose}", sep=".").unsign(token, max_age=max_age)
        except BadSignature:
            continue
    raise ValueError("This link is not valid, or it is too old.")
