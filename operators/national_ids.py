"""National identity numbers: those with a checksum or an unmistakable shape, and a few more where they are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from string import ascii_uppercase

_SPANISH = "TRWAGMYFPDXBNJZSQVHLCKE"
_FINNISH = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_ITALIAN_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_CHINESE_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_POLISH_WEIGHTS = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)
_DIHEDRAL_POWERS = (
    *("0123456789", "1576283094", "5803796142", "8916043527"),
    *("9453126870", "4286573901", "2793806415", "7046913258"),
)


_Check = Callable[[str], bool]


def national_ids(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Start and end of each identity number in text[begin:end].

    Known by themselves: US SSN, GB NINO (in pairs), FR NIR, ES DNI and NIE, IT codice fiscale, BR CPF, CN resident id,
    CH AHV, FI HETU, BE Rijksregister, IN Aadhaar (in fours). Where a word before names them: US SSN and GB NINO in one
    piece, US ITIN, DE Steuer-ID, NL BSN, PL PESEL, BR CPF and IN Aadhaar in one piece, CA SIN.
    """
    for pattern, checks in _RULES:
        for match in pattern.finditer(text, begin, end):
            country = match.lastgroup or ""
            if checks[country]("".join(char for char in match[country].upper() if char.isalnum())):
                yield match.span(country)


def _always(_: str) -> bool:
    return True


def _social_security(number: str) -> bool:
    return number[0] != "9" and number[:3] not in {"000", "666"} and number[3:5] != "00" and number[5:] != "0000"


def _spanish(number: str) -> bool:
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return number[-1] == _SPANISH[int(digits) % 23]


def _french(number: str) -> bool:
    body = number[:-2].replace("2A", "19").replace("2B", "18")
    return body.isdigit() and 97 - int(body) % 97 == int(number[-2:])


def _italian(number: str) -> bool:
    values = [int(char) if char.isdigit() else ord(char) - 65 for char in number[:15]]
    total = sum(values[1::2]) + sum(_ITALIAN_ODD[value] for value in values[::2])
    return ascii_uppercase[total % 26] == number[15]


def _brazilian(number: str) -> bool:
    digits = [int(char) for char in number]
    if len(set(digits)) == 1:
        return False
    for place in (9, 10):
        rest = sum(digit * weight for digit, weight in zip(digits, range(place + 1, 1, -1), strict=False)) * 10 % 11
        if rest % 10 != digits[place]:
            return False
    return True


def _chinese(number: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(number, _CHINESE_WEIGHTS, strict=False))
    return "10X98765432"[total % 11] == number[17]


def _swiss(number: str) -> bool:
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(number[:12]))
    return -total % 10 == int(number[12])


def _finnish(number: str) -> bool:
    digits = number[:6] + number[-4:-1]
    return number[-1] == _FINNISH[int(digits) % 31]


def _belgian(number: str) -> bool:
    return any(97 - int(century + number[:9]) % 97 == int(number[9:]) for century in ("", "2"))


def _german(number: str) -> bool:
    product = 10
    for digit in number[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return number[0] != "0" and (11 - product) % 10 == int(number[10])


def _dutch(number: str) -> bool:
    digits = [int(char) for char in number.zfill(9)]
    return sum(digit * weight for digit, weight in zip(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1), strict=True)) % 11 == 0


def _polish(number: str) -> bool:
    return sum(int(digit) * weight for digit, weight in zip(number, _POLISH_WEIGHTS, strict=True)) % 10 == 0


def _canadian(number: str) -> bool:
    doubled = [sum(divmod(int(digit) * 2, 10)) for digit in number[1::2]]
    return (sum(int(digit) for digit in number[::2]) + sum(doubled)) % 10 == 0


def _indian(number: str) -> bool:
    """Verhoeff: products in the dihedral group of the pentagon."""
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = _dihedral(check, int(_DIHEDRAL_POWERS[place % 8][int(digit)]))
    return check == 0


def _dihedral(a: int, b: int) -> int:
    turned = (a + b) % 5 if a < 5 else (a - b) % 5
    return turned + 5 * ((a >= 5) != (b >= 5))


_THEN = r"[\s:#.=*\"'()|-]{0,6}(?:(?:no|nos|nr|number|num|nummer|is|code|id)\b[\s:#.=*\"'()|-]{0,4}){0,3}"
_NINO = r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] \d{2} \d{2} \d{2} [A-D]"

_BY_THEMSELVES: dict[str, tuple[str, _Check]] = {
    "us": (r"\d{3}-\d{2}-\d{4}", _social_security),
    "gb": (_NINO, _always),
    "fr": (r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", _french),
    "es": (r"(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z]", _spanish),
    "it": (r"[A-Z]{6}\d{2}[ABCDEHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", _italian),
    "br": (r"\d{3}\.\d{3}\.\d{3}-\d{2}", _brazilian),
    "cn": (r"[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dX]", _chinese),
    "ch": (r"756(?:\.\d{4}\.\d{4}\.\d{2}|\d{10})", _swiss),
    "fi": (r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d{2}[-+A-FU-Y]\d{3}[\dA-FHJ-NPR-Y]", _finnish),
    "be": (r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", _belgian),
    "in": (r"[2-9]\d{3}(?P<gap>[ -])\d{4}(?P=gap)\d{4}", _indian),
}
_NAMED: dict[str, tuple[str, str, _Check]] = {
    "us": (r"ssn|social security|soc\.? sec", r"\d{3}[ .]?\d{2}[ .]?\d{4}", _social_security),
    "us_tax": (r"itin|taxpayer", r"9\d{2}-(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9])-\d{4}", _always),
    "gb": (r"ni|nino|national insurance", _NINO.replace(" ", " ?"), _always),
    "br": (r"cpf", r"\d{11}", _brazilian),
    "in": (r"aadhaar|aadhar|uid", r"[2-9]\d{11}", _indian),
    "de": (r"steuer-?id(?:nr)?|(?:steuer)?identifikationsnummer|idnr|tin", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", _german),
    "nl": (r"bsn|burgerservicenummer|sofinummer", r"\d{8,9}|\d{4}\.\d{2}\.\d{3}", _dutch),
    "pl": (r"pesel", r"\d{11}", _polish),
    "ca": (r"sin|social insurance", r"\d{3}(?P<gap2>[ -]?)\d{3}(?P=gap2)\d{3}", _canadian),
}
_AFTER = r"(?![\w-])(?!\.\d)"
_RULES: tuple[tuple[re.Pattern[str], Mapping[str, _Check]], ...] = (
    (
        re.compile(
            r"(?<![\w-])(?<!\w\.)(?:" + "|".join(f"(?P<{c}>{p}){_AFTER}" for c, (p, _) in _BY_THEMSELVES.items()) + ")",
            re.IGNORECASE,
        ),
        {country: check for country, (_, check) in _BY_THEMSELVES.items()},
    ),
    (
        re.compile(
            r"\b(?:" + "|".join(rf"(?:{w})\b{_THEN}(?P<{c}>{p}){_AFTER}" for c, (w, p, _) in _NAMED.items()) + ")",
            re.IGNORECASE,
        ),
        {country: check for country, (_, _, check) in _NAMED.items()},
    ),
)
