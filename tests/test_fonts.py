"""Names with letters that fonts lack, in every picture (T2-26)."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import genotypes as gt
import visualize
from records import figure, fonts

NOBODY = "\U000f1234"  # for private use: no font has it


def test_a_letter_that_no_font_has_becomes_plain():
    families, missing = fonts.families(f"a\u044f{NOBODY}")
    assert families[0] == fonts.USUAL
    assert missing == {NOBODY}
    assert fonts.plain(f"a{NOBODY}b", lambda letter: letter not in missing) == "a?b"
    assert fonts.families("") == ([fonts.USUAL], frozenset())


def test_a_font_of_the_system_is_taken(monkeypatch):
    from matplotlib import font_manager, ft2font

    class Font:
        def __init__(self, path):
            if path == "broken":
                raise RuntimeError("no font")
            self.letters = "abc" if path != "chinese" else "\u732b"

        def get_charmap(self):
            return {ord(letter): 1 for letter in self.letters}

    entry = font_manager.FontEntry
    listed = [entry(fname=name.lower(), name=name) for name in ("Broken", "Latin", "Chinese")]
    monkeypatch.setattr(ft2font, "FT2Font", Font)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    assert fonts._families.__wrapped__(frozenset("a\u732bz")) == ([fonts.USUAL, "Chinese"], {"z"})


def test_figures_have_no_boxes_and_warn_of_nothing(here):
    fig = Figure()
    axes = fig.subplots()
    fig.suptitle(f"pets {NOBODY}", parse_math=False)
    axes.plot([1, 2], label=f"\u0441\u043e\u0431\u0430\u043a\u0430 {NOBODY}")
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.save(fig, "x.png")
    assert fig.get_suptitle() == "pets ?"
    (label,) = axes.get_legend().get_texts()
    assert label.get_text() == "\u0441\u043e\u0431\u0430\u043a\u0430 ?"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_drawings_have_no_boxes(here):
    for name, caption in (("a", f"\u732b\u72d7{NOBODY}"), ("b", "???")):
        visualize.plot(gt.DARTS_V2, name, "r", caption)
    if not shutil.which("dot"):  # it may find a font with Chinese letters
        assert np.array_equal(pixels("a.png"), pixels("b.png"))
    source = f'digraph {{ a [label="\u044f\u732b\u2013{NOBODY}"] }}'
    assert visualize.drawable(source, "/bin/graphviz-pure").endswith('"\u044f?\u2013?"] }')
    assert NOBODY not in visualize.drawable(source, "/bin/dot")


def test_words_of_svg_drawings_have_room_in_any_font(here):
    (path, _) = visualize.plot(gt.DARTS_V2, "n", "r", "\u732b", format="svg")
    text = Path(path).read_text(encoding="utf-8")
    assert text.count('font-family="DejaVu Sans,Verdana,Helvetica,Arial,sans-serif"') > 10
    assert text.count("font-family") == text.count('font-family="DejaVu Sans,V')
    assert "\u732b" in text  # whoever shows it may have a font
    wide, narrow = (
        visualize.render_bytes(f'digraph {{ a [shape=plain, label="sep_conv_3x3", fontname={f}] }}',
                               "svg")[0] for f in ("Helvetica", "Arial")
    )  # fmt: skip

    def width(svg):
        return float(svg.split(b'width="')[1].split(b"pt")[0])

    assert width(wide) > 1.05 * width(narrow)


@pytest.mark.pictures
def test_a_run_on_images_with_a_chinese_name_warns_of_nothing(here, capsys):
    from conftest import FAST_SEARCH
    from data_helpers import make

    import search

    make(here / "\u732b\u72d7 v2", n=50)
    flags = [word for word in FAST_SEARCH if word != "0.1"]
    flags.remove("--subset")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.main([*flags, "--dataset", "\u732b\u72d7 v2", "--name", "x"])
    assert "glyph" not in "".join(capsys.readouterr()).lower()
