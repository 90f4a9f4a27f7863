"""`make openapi`: writes the document anew."""

from local.openapi import document


def main() -> None:
    text = document.text()
    stale = not document.FILE.exists() or document.FILE.read_text() != text
    document.FILE.write_text(text)
    place = document.FILE.relative_to(document.ROOT)
    print(f"{place} is {'written anew' if stale else 'as it was'}.")


main()
