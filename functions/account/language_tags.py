"""BCP 47 language tags (RFC 5646): well formed, of a language that there is, written as is usual."""

import re
from typing import Final

# ISO 639-1, which is closed: new languages are given three letters, and of those there are 8,000.
_TWO_LETTERS: Final = """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
    de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
    ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln
    lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi
    pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th
    ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
_LANGUAGES: Final = frozenset(_TWO_LETTERS.split())

_TAG: Final = re.compile(
    r"""
    (?P<language> [a-z]{2,3}) (?:-[a-z]{3}){0,3}  # with extended languages, as zh-yue
    (?: -(?P<script> [a-z]{4}))?
    (?: -(?P<region> [a-z]{2} | [0-9]{3}))?
    (?: - (?:[a-z0-9]{5,8} | [0-9][a-z0-9]{3}))*  # variants
    (?: - [0-9a-wy-z] (?: -[a-z0-9]{2,8})+)*  # extensions
    (?: - x (?: -[a-z0-9]{1,8})+)?  # private use
    """,
    re.VERBOSE,
)
MAX_LENGTH: Final = 64


def usual(tag: str) -> str:
    """The tag as RFC 5646, 2.1.1, recommends to write it: de-AT, zh-Hant-TW. Raises ValueError."""
    form = _TAG.fullmatch(tag.lower()) if tag.isascii() and len(tag) <= MAX_LENGTH else None
    if form is None:
        raise ValueError("send a BCP 47 language tag, such as en, de-AT or zh-Hant-TW")
    language = form["language"]
    if len(language) == len("en") and language not in _LANGUAGES:
        raise ValueError(f"ISO 639 has no language {language}")
    plain = tag.lower()
    if form["region"]:
        plain = _rewritten(plain, form.span("region"), form["region"].upper())
    if form["script"]:
        plain = _rewritten(plain, form.span("script"), form["script"].title())
    return plain


def _rewritten(tag: str, span: tuple[int, int], part: str) -> str:
    return tag[: span[0]] + part + tag[span[1] :]
