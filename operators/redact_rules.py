"""What counts as personal in a text: patterns, and the checks that tell them from numbers of other kinds.

Where a number has a checksum the checksum decides. Where it has none its shape decides, and where the shape is common
the words before it. In doubt between a leak and a lost number, the number goes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Literal

from operators.national_ids import national_ids

RULES = "1"
"""Raised whenever the same text gives another."""

Kind = Literal["EMAIL", "IBAN", "CARD", "NATIONAL_ID", "IP", "PHONE"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Personal:
    """A place in a text: text[start:end] is of this kind."""

    kind: Kind
    start: int
    end: int


def find(text: str) -> list[Personal]:
    """Everything personal in the text, in order; no two overlap, and where two would the surer kind stands."""
    found = [Personal("EMAIL", start, end) for start, end in _emails(text)]
    regions = list(_numbered_lines(text))
    for kind, places in _FINDERS:
        for begin, end in regions:
            found += [Personal(kind, *span) for span in places(text, begin, end)]
    return without_overlaps(found)


def without_overlaps(found: list[Personal]) -> list[Personal]:
    """In order of place; of those that overlap, the one that comes first in the list."""
    taken: list[Personal] = []
    for one in found:
        place = bisect_left(taken, one.start, key=lambda other: other.end - 1)
        if place == len(taken) or taken[place].start >= one.end:
            taken.insert(place, one)
    return taken


_DIGITS = re.compile(r"^(?:[^\d\n]*\d){4}.*$", re.MULTILINE)
_SHORT_ADDRESS = re.compile(r"^.*?::.*$", re.MULTILINE)


def _numbered_lines(text: str) -> Iterator[Span]:
    """Begin and end of the lines that can hold a number of somebody, and of the lines next to them."""
    lines = [match.span() for match in _DIGITS.finditer(text)]
    if "::" in text:
        lines = sorted({*lines, *(match.span() for match in _SHORT_ADDRESS.finditer(text))})
    begin = end = -1
    for line_begin, line_end in lines:
        before = text.rfind("\n", 0, max(0, line_begin - 1)) + 1
        after = text.find("\n", line_end + 1)
        if before > end:
            if end >= 0:
                yield begin, end
            begin = before
        end = max(end, after if after >= 0 else len(text))
    if end >= 0:
        yield begin, end


_EMAIL = re.compile(
    r"(?<![\w.%+'-])([\w.%+'-]{1,64})@((?:[\w-]{1,63}\.){1,8}(xn--[\w-]{2,59}|[^\W\d_]{2,24}))(?![\w@-])(?!\.\w+@)"
)
_EMAIL_SPELT = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64} ?[\[({<] ?at ?[\])}>] ?[\w-]{1,63}"
    r"(?: ?[\[({<] ?dot ?[\])}>] ?[\w-]{2,63}|\.[\w-]{2,63}){1,4}",
    re.IGNORECASE,
)
_AT_SPELT = re.compile(r"[\[({<] ?at ?[\])}>]", re.IGNORECASE)
_NO_DOMAIN = re.compile(
    r"avif|bmp|css|csv|dll|dot|exe|gif|gz|html|ico|jpeg|jpg|jsx?|json|pdf|png|rc|svg|tar|toml|tsx|txt|webp|whl|xml|ya?ml"
    r"|alpha|beta|astype|conj|copy|data|detach|grad|inv|mean|numpy|reshape|shape|size|sum|tensor|transpose|values|weight",
    re.IGNORECASE,
)
"""Endings of files, of versions and of code that stand where an address has its top-level domain."""
_HUMP = re.compile("[a-z][A-Z]")
_VERSION_LIKE = re.compile(r"\d+\.\d+")


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            code = _NO_DOMAIN.fullmatch(match[3]) or _VERSION_LIKE.match(match[2]) or _HUMP.search(match[3])
            if not code and match[1] != "git":  # git@host is how everybody logs in there
                yield match.start() + (match[1][0] == "'"), match.end()
    if _AT_SPELT.search(text):
        yield from (match.span() for match in _EMAIL_SPELT.finditer(text))


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?=[ \xa0\n-]?[A-Za-z0-9]{2})")
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK,FI,FO,GL,NL,SD",
        19: "MK,SI",
        20: "AT,BA,EE,KZ,LT,LU,MN,XK",
        21: "CH,HR,LI,LV",
        22: "BG,BH,CR,DE,GB,GE,IE,ME,RS,VA",
        23: "AE,GI,IL,IQ,OM,SO,TL",
        24: "AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG",
        25: "LY,PT,ST",
        26: "IS,TR",
        27: "BI,DJ,FR,GR,IT,MC,MR,SM",
        28: "AL,AZ,BY,CY,DO,GT,HN,HU,LB,NI,PL,SV",
        29: "BR,EG,PS,QA,UA",
        30: "JO,KW,MU,YE",
        31: "MT,SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split(",")
}
_CARD = re.compile(
    r"(?<!\w)(?<!\d[.-])(?:"
    r"\d{4}([ \xa0-]|\n)\d{4}(?:\1|\n)\d{4}(?:\1|\n)\d{4}(?:\1\d{3})?"
    r"|3\d{3}([ \xa0-])\d{6}\2\d{4,5}"
    r"|\d{14,19})(?!\w)(?![.-]\d)"
)
_CARD_PREFIXES = re.compile(
    r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|30[0-5]|3[689]|6011|64[4-9]|65|62|35(?:2[89]|[3-8])"
    r"|5018|5020|5038|5893|6304|6759|676[1-3]"
)
_CARD_LENGTHS = {
    **dict.fromkeys(("34", "37"), (15,)),
    **dict.fromkeys(("30", "38", "39"), (14, 16)),
    **dict.fromkeys(("35", "36", "60", "62", "64", "65"), (14, 16, 17, 18, 19)),
}


def _ibans(text: str, begin: int, end: int) -> Iterator[Span]:
    for match in _IBAN.finditer(text, begin, end):
        stop = _iban_end(text, match.start())
        if stop is not None:
            yield match.start(), stop


def _iban_end(text: str, start: int) -> int | None:
    """Where the IBAN that begins at `start` ends, single blanks between its characters allowed; None if none does."""
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
    letters = ""
    end = start
    while len(letters) < length and end < len(text):
        if text[end].isalnum() and text[end].isascii():
            letters += text[end]
        elif text[end] not in " \xa0\n-" or not text[end - 1].isalnum():
            return None
        end += 1
    if not length or len(letters) < length or (end < len(text) and text[end].isalnum()):
        return None
    rearranged = (letters[4:] + letters[:4]).upper()
    return end if int("".join(str(int(letter, 36)) for letter in rearranged)) % 97 == 1 else None


def _cards(text: str, begin: int, end: int) -> Iterator[Span]:
    for match in _CARD.finditer(text, begin, end):
        digits = "".join(char for char in match[0] if char.isdigit())
        if len(digits) in _CARD_LENGTHS.get(digits[:2], (16,)) and _CARD_PREFIXES.match(digits) and luhn(digits):
            yield match.span()


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of those before it."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(int(digit) for digit in digits[-1::-2]) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


_IPV4 = re.compile(r"(?<![\w.])(?<![A-Za-z_]-)(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?!\w)(?!\.\w)(?!-[A-Za-z])")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[23][0-9a-f]{3}|f[cd][0-9a-f]{2}|fe80):[0-9a-f:]*(?:[0-9a-f]|::)(?:\.[\d.]+\d)?(?![\w:])",
    re.IGNORECASE,
)
_VERSION_BEFORE = re.compile(
    r"(?:\bv|\bver|version|versions|release|\brel|build|revision|\brev|firmware|driver|section|sect|\bsec|chapter"
    r"|clause|§§?|paragraph|table|figure|\bfig|appendix|assembly|package|kernel|\boid|\bsdk|\bjdk"
    r"|[=<>~!^]=|[<>^~]|[a-z]/)[.\"']?[ :=]*[\"']?$",
    re.IGNORECASE,
)
_ADDRESS_BEFORE = re.compile(
    r"\bip\b|\bipv4|\bips\b|address|\bhost|\bping|\bssh\b|\bdns\b|gateway|subnet|netmask|nameserver|resolver|client"
    r"|remote|peer|proxy|login|logged|connect|traceroute|\bnmap|\bcurl|://|listen|\bbind|\broute|inet|\bblock|firewall"
    r"|attack|visitor|request",
    re.IGNORECASE,
)
_PORT_OR_NET = re.compile(r":\d{2,5}\b|/(?:[89]|[12]\d|3[0-2])\b")
_BEFORE_CHARS = 40
_VERSION_OCTET = 50


def _before(text: str, start: int) -> str:
    """What stands before a place, on its line."""
    return text[max(0, start - _BEFORE_CHARS) : start].rpartition("\n")[2]


def _addresses(text: str, begin: int, end: int) -> Iterator[Span]:
    for match in _IPV4.finditer(text, begin, end):
        octets = match.groups()
        numbers = [int(octet) for octet in octets]
        valid = all(octet == str(number) and number < 256 for octet, number in zip(octets, numbers, strict=True))
        if valid and _is_address(numbers, _before(text, match.start()), text[match.end() : match.end() + 6]):
            yield match.span()
    for match in _IPV6.finditer(text, begin, end):
        try:
            IPv6Address(match[0])
        except AddressValueError:
            continue
        yield match.span()


def _is_address(numbers: list[int], before: str, after: str) -> bool:
    """Whether four numbers with dots are the address of somebody, and not a version, this host itself or a mask."""
    if numbers[0] in (0, 127, 255) or _VERSION_BEFORE.search(before):
        return False
    if numbers[0] == 10 or max(numbers) >= _VERSION_OCTET:
        return True
    bracketed = before.endswith("[") and after.startswith("]")
    return bracketed or bool(_ADDRESS_BEFORE.search(before) or _PORT_OR_NET.match(after))


_EXTENSION = r"(?:,? ?(?:ext\.?|extension|x|durchwahl) ?\d{1,5})?"
_PHONE_WORLD = re.compile(
    r"(?<![\w+/.=-])(?:\+ ?|(?<!\d )00 ?(?=[1-9]\d?\d?[ ./-]))"
    r"(1|7|2(?:0|7|[1-689]\d)|3(?:[0-469]|[578]\d)|4(?:[013-9]|2\d)|5(?:[1-8]|[09]\d)|6(?:[0-6]|[7-9]\d)"
    r"|8(?:[1246]|[05-8]\d)|9(?:[0-58]|[679]\d))"
    r"(?:[ \xa0./-]?(?:\(\d{1,5}\)|\d{1,13})){1,7}" + _EXTENSION + r"(?![\w])(?![.,-]\d)",
    re.IGNORECASE,
)
_PHONE_AMERICA = re.compile(
    r"(?<![\w+/.=-])(?:\+?1[ .-])?(?:\([2-9]\d{2}\)[ -]?\d{3}[ .-]|[2-9]\d{2}([.-])\d{3}\1)\d{4}"
    + _EXTENSION
    + r"(?![\w-])(?!\.\d)",
    re.IGNORECASE,
)
_PHONE_TRUNK = re.compile(
    r"(?<![\w+/.,=-])(?<!\d[ :])(?:"
    r"0[1-9](?:([ .-])\d{2})(?:\1\d{2}){3}"
    r"|0[1-9]\d{0,3}(?: \d{2,4}){2,4}"
    r"|0[1-9]\d{1,3} \d{5,8}"
    r"|\(0[1-9]\d{0,4}\) ?-? ?\d{2,8}(?:[ -]\d{2,5}){0,3}"
    r"|0[1-9]\d{1,4} ?/ ?\d{2,8}(?:[ -]\d{2,4}){0,3}"
    r"|0[1-9]\d{0,2}-\d{2,4}(?:[ -]\d{2,4}){1,3}"
    r"|0[1-9]\d{0,3}-\d{6,8}"
    r")" + _EXTENSION + r"(?![\w])(?![./:-]?[\da-f]{2,})(?! [\da-f]{2}\b)",
    re.IGNORECASE,
)
_PHONE_NAMED = re.compile(
    r"(?:\b(?:t[ée]l|tele(?:ph|f)on[eo]?|t[ée]l[ée]fono|t[ée]l[ée]phone|phones?|cell(?:phone|ular)?|handy|mob(?:ile?)?"
    r"|m[óo]vil|celular|portable"
    r"|fax|telefax|call|dial|whatsapp|sms|hotline|ph|gsm|rufnummer|tlf|тел|телефон|моб)\b|電話|电话|手机|手機|携帯|전화)\.?"
    r"(?:[ \t:：#=*_\"'|()]|\b(?:me|us|him|her|them|at|on|no|nr|num|numbers?|nummer|is|my|our|your|direct|work|home"
    r"|office|line|or|to)\b\.?){1,12}"
    r"(\+?\(?\d[\d \xa0()./-]{5,18}\d)(?![\w])(?![.,]\d)",
    re.IGNORECASE,
)
_OTHER_NUMBER_BEFORE = re.compile(
    r"(?:part|item|sku|order|model|catalog(?:ue)?|case|ticket|invoice|\bref|reference|serial|\blot|batch|isbn|issn|doi"
    r"|patent|tracking)"
    r"(?: ?(?:no|nos|number|numbers|nr|id|code|#)\b)?[.:#= ]*$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:19|20)\d{2}[-/. ]?[01]\d[-/. ]?[0-3]\d|[0-3]?\d[-/.][01]?\d[-/.](?:19|20)\d{2}|[\d]+\.\d+$|0[xX]"
)
_TEN_DIGITS = {"1", "7"}
_WORLD_LEAST, _AMERICA_LEAST, _TRUNK_LEAST, _NAMED_LEAST, _MOST = 8, 10, 9, 7, 15


def _phones(text: str, begin: int, end: int) -> Iterator[Span]:
    for match in _PHONE_WORLD.finditer(text, begin, end):
        exact = match[1] not in _TEN_DIGITS or _digits(_number(match[0]).lstrip("+0 ")) == 11
        if exact and _is_phone(match, _WORLD_LEAST):
            yield match.span()
    for pattern, least in ((_PHONE_AMERICA, _AMERICA_LEAST), (_PHONE_TRUNK, _TRUNK_LEAST)):
        yield from (match.span() for match in pattern.finditer(text, begin, end) if _is_phone(match, least))
    for match in _PHONE_NAMED.finditer(text, begin, end):
        number = match[1]
        plain = number.isdigit() and (len(number) <= _NAMED_LEAST or number.endswith("0000"))
        if _NAMED_LEAST <= _digits(number) <= _MOST and not plain and not _DATE.match(number):
            yield match.span(1)


def _is_phone(match: re.Match[str], least: int) -> bool:
    """Whether a number in the shape of a telephone number is one: long enough, no date, and not named otherwise."""
    number = _number(match[0])
    if not least <= _digits(number) <= _MOST or _DATE.match(number.lstrip("+ ")):
        return False
    return not _OTHER_NUMBER_BEFORE.search(_before(match.string, match.start()))


def _number(matched: str) -> str:
    """A telephone number without its extension."""
    return re.split("[a-z,]", matched.lower(), maxsplit=1)[0]


def _digits(text: str) -> int:
    return sum(char.isdigit() for char in text)


_FINDERS: tuple[tuple[Kind, Callable[[str, int, int], Iterator[Span]]], ...] = (
    ("IBAN", _ibans),
    ("CARD", _cards),
    ("NATIONAL_ID", national_ids),
    ("IP", _addresses),
    ("PHONE", _phones),
)
"""The surest first."""
