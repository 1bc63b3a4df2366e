"""Letters of names that a picture may not be able to show.

A data set may be called anything, and no font has all letters. matplotlib and Graphviz warn of each
letter that is missing and draw a box.
"""

import functools

USUAL = "DejaVu Sans"  # comes with matplotlib


def plain(text, has):
    """`text` with a question mark for every letter of which `has(letter)` is false."""
    return "".join(letter if has(letter) else "?" for letter in text)


def families(text):
    """(font families that have the letters of `text` between them, the letters that none has)."""
    letters = frozenset(letter for letter in text if not letter.isascii())
    return _families(letters) if letters else ([USUAL], frozenset())


@functools.cache
def _families(letters):
    from matplotlib import font_manager, ft2font  # takes half a second

    found, missing = [], letters
    usual = font_manager.findfont(USUAL)
    system = [(font.fname, font.name) for font in font_manager.fontManager.ttflist]
    for path, family in [(usual, USUAL), *system]:
        try:
            have = missing & {chr(code) for code in ft2font.FT2Font(path).get_charmap()}
        except (OSError, RuntimeError, ValueError):  # a font that is damaged or gone
            continue
        if have and not family.startswith("Last Resort"):  # which has boxes for all letters
            found.append(family)
            missing -= have
        if not missing:
            break
    return list(dict.fromkeys([USUAL, *found])), missing
