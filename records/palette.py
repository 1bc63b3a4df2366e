"""The one palette of all pictures: a color for every op, one hue for a family of ops.

Drawings, the figure of alpha and the report take their colors from here, so that an op looks the
same wherever it stands.
"""

import zlib

# Families in the order of legends; the first color of a family stands for it in a legend. All are
# dark enough to be read as text on white.
FAMILIES = {
    "skip": {"skip_connect": "#228833"},
    "pooling": {"max_pool_3x3": "#33669d", "avg_pool_3x3": "#4a9cc7"},
    "separable": {
        "sep_conv_3x3": "#d9485f", "sep_conv_5x5": "#a82440", "sep_conv_7x7": "#741229",
    },
    "dilated": {"dil_conv_3x3": "#9a5cb4", "dil_conv_5x5": "#642e7d"},
    "mobile": {
        "mb_conv_3x3": "#b8860b", "mb_conv_5x5": "#8f6400", "mb_conv_3x3_e6": "#c4842a",
        "mb_conv_5x5_e6": "#6e4d00", "fused_mb_conv_3x3": "#a8743a", "ds_conv_3x3": "#85702c",
    },
    "factorised": {"conv_7x1_1x7": "#0b7a75"},
    "none": {"none": "#8a8a8a"},
}  # fmt: skip
OWN = ("#c2591b", "#1f7f8f", "#5a6b1f", "#b0307f", "#4d4fae", "#7a4b35")  # blocks of one's own

INPUT, NODE, OUTPUT = "#c9e8c4", "#bcd9f2", "#f3e2a5"  # fills of the boxes of a drawing
INK, FAINT = "#333333", "#8c8c8c"  # text and lines; what may stand back

CHANGED, BEST = "#fff0a8", "#0b7a75"  # in an animation: new edges, the recommended epoch

TRAIN, VAL = "#33669d", "#d9652b"  # the curves of a single run
RUNS = ("#33669d", "#d9652b", "#228833", "#9a5cb4", "#8f6400", "#0b7a75", "#b0307f", "#555555")

# the candidates of a comparison, by kind (records/comparison.py)
CANDIDATES = {
    "found": "#d9652b", "published": "#33669d", "given": "#9a5cb4", "random": "#777777",
    "baseline": "#228833",
}  # fmt: skip


def family(op):
    """The family of an op; "own block" for a name that does not come with this repository."""
    return next((name for name, ops in FAMILIES.items() if op in ops), "own block")


def color(op):
    """The color of an op, "#rrggbb". A block of one's own always gets the same one of OWN."""
    known = FAMILIES.get(family(op), {})
    return known[op] if op in known else OWN[zlib.crc32(op.encode()) % len(OWN)]


def legend(ops):
    """[(family, color)] of the families among `ops`, in a fixed order; the color is that of one of
    these ops."""
    ops = sorted(ops)
    there = {name: [color for op, color in colors.items() if op in ops]
             for name, colors in FAMILIES.items()}  # fmt: skip
    known = [(name, colors[0]) for name, colors in there.items() if colors]
    own = [(family(op), color(op)) for op in ops if family(op) == "own block"]
    return known + own[:1]
