"""Names of inputs and outputs as the signatures of exports take them."""

from __future__ import annotations

import keyword
import re


def plain_name(name: str) -> str:
    """A name as signatures take it: letters and digits of ASCII, underscores between; other letters by their numbers.

    >>> [plain_name(name) for name in ("left image", "_a/b:0", "Größe")]
    ['left_image', 'a_b_0', 'Gru00f6u00dfe']
    """
    ascii_only = "".join(f"u{ord(c):04x}" if c.isalnum() and not c.isascii() else c for c in name)
    return re.sub(r"\W", "_", ascii_only, flags=re.ASCII).lstrip("_") or "unnamed"


def input_name(name: str) -> str:
    """The same of an input, which is an argument of a function: `class` is `class_`."""
    plain = plain_name(name)
    return f"{plain}_" if keyword.iskeyword(plain) else plain
