"""A small parallel corpus that needs no download: numbers, dates, times and prices in words, English and German.

The languages differ where it matters: German says "one-and-twenty", puts the half hour before the full one, and writes
numbers as one word, which is cut here into the words it is made of.
"""

import random
from collections.abc import Callable

from datasets import Dataset


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_EN = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_DE = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
)
_TENS_EN = _words("- - twenty thirty forty fifty sixty seventy eighty ninety")
_TENS_DE = _words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_MONTHS_EN = _words("january february march april may june july august september october november december")
_MONTHS_DE = _words("januar februar märz april mai juni juli august september oktober november dezember")
_DAYS_EN = _words("monday tuesday wednesday thursday friday saturday sunday")
_DAYS_DE = _words("montag dienstag mittwoch donnerstag freitag samstag sonntag")
_GOODS = [("bread", "brot"), ("tea", "tee"), ("milk", "milch"), ("cheese", "käse"), ("wine", "wein"), ("salt", "salz")]


def translation_corpus(rows: int, seed: int = 0) -> Dataset:
    """Sentence pairs with the columns `en` and `de`, all different, drawn with the seed.

    Raises:
        ValueError: fewer than one row, or more than there are different sentences to draw in reasonable time.
    """
    if not 1 <= rows <= 20_000:
        raise ValueError(f"translation_corpus: rows must be from 1 to 20000, got {rows}.")
    draw = random.Random(seed)
    kinds: tuple[Callable[[random.Random], tuple[str, str]], ...] = (_number, _date, _time, _price)
    found: dict[str, str] = {}
    while len(found) < rows:
        english, german = draw.choice(kinds)(draw)
        found[english] = german
    return Dataset.from_dict({"en": list(found), "de": list(found.values())})


def english_number(n: int) -> str:
    """0 to 999 in words."""
    if n >= 100:
        rest = f" and {english_number(n % 100)}" if n % 100 else ""
        return f"{_EN[n // 100]} hundred{rest}"
    if n < 20:
        return _EN[n]
    return _TENS_EN[n // 10] + (f" {_EN[n % 10]}" if n % 10 else "")


def german_number(n: int) -> str:
    """0 to 999 in words."""
    if n >= 100:
        rest = f" {german_number(n % 100)}" if n % 100 else ""
        return f"{_one(n // 100)} hundert{rest}"
    if n < 20:
        return _DE[n]
    return (f"{_one(n % 10)} und " if n % 10 else "") + _TENS_DE[n // 10]


def _number(draw: random.Random) -> tuple[str, str]:
    n, thing = draw.randrange(2, 1000), draw.choice(_GOODS)
    return f"we have {english_number(n)} packs of {thing[0]}", f"wir haben {german_number(n)} packungen {thing[1]}"


def _date(draw: random.Random) -> tuple[str, str]:
    day, month, weekday = draw.randrange(1, 32), draw.randrange(12), draw.randrange(7)
    return (
        f"on {_DAYS_EN[weekday]} {_MONTHS_EN[month]} {english_number(day)}",
        f"am {_DAYS_DE[weekday]} den {german_number(day)} {_MONTHS_DE[month]}",
    )


def _time(draw: random.Random) -> tuple[str, str]:
    hour, weekday = draw.randrange(1, 12), draw.randrange(7)
    if draw.random() < 0.3:
        clock = f"half past {_EN[hour]}", f"halb {_DE[hour + 1]}"
    else:
        minute = draw.randrange(2, 60)
        clock = f"{_EN[hour]} {english_number(minute)}", f"{_one(hour)} uhr {german_number(minute)}"
    return f"at {clock[0]} on {_DAYS_EN[weekday]}", f"am {_DAYS_DE[weekday]} um {clock[1]}"


def _price(draw: random.Random) -> tuple[str, str]:
    euro, cent, thing = draw.randrange(2, 100), draw.randrange(2, 100), draw.choice(_GOODS)
    return (
        f"the {thing[0]} costs {english_number(euro)} euros and {english_number(cent)} cents",
        f"{thing[1]} kostet {german_number(euro)} euro und {german_number(cent)} cent",
    )


def _one(digit: int) -> str:
    return "ein" if digit == 1 else _DE[digit]
