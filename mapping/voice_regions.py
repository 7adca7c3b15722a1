"""Which regions can be called: the guide's table (voice_regions.tsv, where its odd rows are explained) and the region of a phone. Pure."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import phonenumbers

_FILE: Final = Path(__file__).with_name("voice_regions.tsv")


@dataclass(frozen=True, slots=True)
class Region:
    """A row of the table. `sample` is the number the guide shows there; it is its vendor's, and nothing here dials or hands it out."""

    regions: tuple[str, ...]  # ISO 3166, as libphonenumber names them
    codes: tuple[str, ...]  # calling codes, digits only
    zh: str
    en: str
    called: bool
    sample: str

    def name(self, language: str) -> str:
        """The region's name in a language code: Chinese in any Chinese, English in all others."""
        return self.zh if language.lower().startswith("zh") else self.en


@functools.cache
def table() -> tuple[Region, ...]:
    """Every row, in the guide's order: mainland China, what lies outside it, and then what cannot be called."""
    rows = []
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            regions, codes, zh, en, called, sample = line.split("\t")
            rows.append(Region(tuple(regions.split()), tuple(codes.split()), zh, en, called == "yes", sample))
    return tuple(rows)


def region_of(phone: str) -> str:
    """The region of a phone (E.164) as libphonenumber names it, such as "CN"; the main one of its calling code where the number itself says
    nothing; "" where there is none."""
    try:
        parsed = phonenumbers.parse(phone)
    except phonenumbers.NumberParseException:
        return ""
    found = phonenumbers.region_code_for_number(parsed) or phonenumbers.region_code_for_country_code(parsed.country_code or 0)
    return "" if found in (phonenumbers.REGION_CODE_FOR_NON_GEO_ENTITY, "ZZ") else found


def is_premium(phone: str) -> bool:
    """Whether whoever calls a phone (E.164) pays its owner for it: pages to it would be a way to take our money."""
    try:
        return bool(phonenumbers.number_type(phonenumbers.parse(phone)) == phonenumbers.PhoneNumberType.PREMIUM_RATE)
    except phonenumbers.NumberParseException:
        return False


def find(phone: str) -> Region | None:
    """The row of a phone (E.164); None where there is none, as for satellite phones and international free numbers.

    libphonenumber says whose number it is, which tells Guernsey from Cardiff and Almaty from Moscow; of several rows of that region the one
    with the longest code that begins the number (Northern Cyprus is a part of Turkey's plan). A number it cannot place is found by its code alone.
    """
    try:
        parsed = phonenumbers.parse(phone)
    except phonenumbers.NumberParseException:
        return None
    digits = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)[1:]
    region = phonenumbers.region_code_for_number(parsed)
    if region == phonenumbers.REGION_CODE_FOR_NON_GEO_ENTITY:
        return None
    placed = [row for row in table() if region in row.regions]
    begun = [(len(code), row) for row in placed or table() for code in row.codes if digits.startswith(code)]
    if begun:
        return max(begun, key=lambda item: item[0])[1]
    return placed[0] if placed else None
