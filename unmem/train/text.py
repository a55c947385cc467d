"""Names and texts that are not valid Unicode, as text that any file can hold."""

from __future__ import annotations


def printable(name: str) -> str:
    """A file's name as valid text; the bytes that are not UTF-8 are spelt out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def encodable(text: str) -> str:
    r"""The text; half an emoji, such as ``"\ud83d"``, is valid JSON but no text, and becomes a question mark."""
    return text.encode(errors="replace").decode()
