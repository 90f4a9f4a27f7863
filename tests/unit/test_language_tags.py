"""Language tags: which are taken, and how they are written."""

import language_tags
import pytest


@pytest.mark.parametrize(
    ("sent", "usual"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("de-at", "de-AT"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("ES-419", "es-419"),
        ("yue", "yue"),
        ("zh-yue-HK", "zh-yue-HK"),
        ("sl-rozaj-biske-1994", "sl-rozaj-biske-1994"),
        ("de-DE-u-co-phonebk", "de-DE-u-co-phonebk"),
        ("en-x-pirate", "en-x-pirate"),
    ],
)
def test_a_tag_is_written_as_is_usual(sent: str, usual: str) -> None:
    assert language_tags.usual(sent) == usual
    assert language_tags.usual(usual) == usual


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "e",
        "english",
        "xx",
        "qq",
        "en_US",
        "en-",
        "-en",
        "en--US",
        "en-USA1x2y3z",
        "en-u",
        "x-pirate",
        "dé",
        "en\n",
    ],
)
def test_what_is_no_language_is_refused(sent: str) -> None:
    with pytest.raises(ValueError, match=r"BCP 47|ISO 639"):
        language_tags.usual(sent)
