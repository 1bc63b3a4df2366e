"""What all command lines share: a parser that ends in one line, and the types of flags.

Each type says in its error what is allowed.
"""

import argparse
import difflib
import itertools
import os
import re
import sys

from console import one_voice
from console.terminal import visible

LONGEST, LONGEST_GENOTYPE = 1000, 100_000  # characters of a value


class Parser(argparse.ArgumentParser):
    """Says what was wrong in one line, without the page of usage before it.

    No value may be empty, hold bytes that are no UTF-8 or control characters (but those of an
    action with the attribute `any_name`), or be "--" behind "=", for which argparse would hand over
    a list.
    """

    def __init__(self, prog, example=None, **words):
        """example: what a user may type, the first thing that --help says; the usage is then one
        line."""
        if example is not None:
            words["usage"] = f"python {prog} [flags], as in  {example}"
        super().__init__(prog, allow_abbrev=False, formatter_class=HelpFormatter, **words)
        self._words = []

    def parse_known_args(self, args=None, namespace=None):
        self._words = list(sys.argv[1:] if args is None else args)  # what `error` may look at
        return super().parse_known_args(args, namespace)

    def _get_values(self, action, arg_strings):
        for text in arg_strings:
            fault = _fault(action, text)
            if text == "--" and action.option_strings:
                self._check_value(action, self._get_value(action, text))  # what a number must be
                fault = "is no value; a file or folder of that name would be ./--"
            if fault:
                raise argparse.ArgumentError(action, f"{shown(text)} {fault}")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            message = f"invalid choice: {shown(value)} (choose from {known})"
            raise argparse.ArgumentError(action, message)

    def error(self, message):
        if message.startswith("unrecognized arguments: --"):
            message += self._nearest(message.split()[2])
        if "are required" in message:
            words = itertools.takewhile(lambda word: word != "--", self._words)
            no_flags = [word for word in words if word.startswith("-")
                        and word.split("=")[0] not in self._option_string_actions]  # fmt: skip
            near = "".join(map(self._nearest, no_flags[:1]))
            dash = "; a name that begins with a dash goes behind --, as in -- -x"
            message += near or (dash if no_flags else "")
        if len(message) > 2 * LONGEST:  # a long word that is no flag
            message = message[:LONGEST] + "..."
        one_voice.last_line(self.prog, f"{visible(message)} (--help lists all flags)")
        self.exit(2)

    def _nearest(self, word):
        """A question for the end of an error: whether a flag like `word` was meant; "" if none."""
        known = {f.replace("-", "_"): f for a in self._actions for f in a.option_strings}
        near = difflib.get_close_matches(word.split("=")[0].replace("-", "_"), known, 1)
        return f"; did you mean {known[near[0]]}?" if near else ""


def _fault(action, text):
    """What makes a text no value of any flag; None where nothing does."""
    longest = LONGEST_GENOTYPE if action.dest in ("genotype", "candidates") else LONGEST
    if not text:
        return "is empty"
    if len(text) > longest:
        return f"is too long; {longest:,} characters at most are read"
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        return "holds bytes that are no UTF-8"
    if visible(text) != text and not getattr(action, "any_name", False):
        return "holds control characters"
    return None


def shown(value, limit=80):
    """A value in quotes for a message, not more than about `limit` characters of it."""
    text = repr(value)
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(str(value)):,} characters)"


class HelpFormatter(argparse.HelpFormatter):
    """Appends the default where there is one number or word to say."""

    def _get_help_string(self, action):
        default = getattr(action, "value", action.default)  # of config.flag, else of argparse
        if not action.option_strings or default in ("", None) or isinstance(default, (bool, list)):
            return action.help
        if default is argparse.SUPPRESS or "(default:" in action.help:
            return action.help
        return f"{action.help} (default: {default})"


# --- types of flags -----------------------------------------------------------------------------

MOST = 10**9  # of whatever is counted; what a machine can bear is less
LARGE = 1e30  # of other numbers, so that no product of two overflows


def number(text, kind, allowed, test):
    """Parse one number or raise the error that argparse prints."""
    try:
        value = kind(text)
    except ValueError:  # no number, or a whole one of thousands of digits
        value = None
    if value is None or not -LARGE <= value <= LARGE or not test(value):  # NaN fails as well
        raise argparse.ArgumentTypeError(f"{shown(text)} is not {allowed}")
    return value


def positive(text):
    return number(text, float, "a number above 0, from 1e-30 to 1e30", lambda x: x >= 1e-30)


def non_negative(text):
    return number(text, float, "a number of 0 or more, 1e30 at most", lambda x: x >= 0)


def fraction(text):
    return number(text, float, "a number between 0 and 1, both excluded", lambda x: 0 < x < 1)


def probability(text):
    return number(text, float, "a number from 0 up to, not including, 1", lambda x: 0 <= x < 1)


def portion(text):
    return number(text, float, "a number above 0, 1 at most", lambda x: 0 < x <= 1)


def whole(text, low, high):
    return number(
        text, int, f"a whole number of {low} or more, {high:,} at most", lambda x: low <= x <= high
    )


def count(text):
    return whole(text, 1, MOST)


def batch(text):
    return whole(text, 2, MOST)  # BatchNorm needs a second value where a map is down to one pixel


def count_or_zero(text):
    return whole(text, 0, MOST)


def seed(text):
    return whole(text, 0, 2**32 - 1)  # as numpy takes it


def cells(text):
    return whole(text, 1, 1000)


def nodes(text):
    return whole(text, 1, 100)


def gpus(text):
    """CUDA cards as they are said: numbers with commas between, or all."""
    if text != "all" and not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not a number of a CUDA card, counted from 0, several such as 0,2, "
            f"or all"
        )
    return text


def threads(text):
    return whole(text, 1, 1024)


def processes(text):
    return whole(text, 0, 1024)


def jobs(text):
    return whole(text, 1, 1024)


def duration(text):
    """A time such as 90s, 30m or 2h, which stays text; `seconds` reads it."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?[smh]", text) or not seconds(text):
        allowed = "a time such as 90s, 30m or 2h, with at most six digits"
        raise argparse.ArgumentTypeError(f"{shown(text)} is not {allowed}")
    return text


def seconds(text):
    """Of a `duration`."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def channel_counts(text):
    """ "16,32" -> [16, 32]."""
    return [whole(word, 1, 10_000) for word in text.split(",")]


def digit(text):
    """One digit as a number, for flags with `choices`; anything else stays as it is and is none."""
    return int(text) if re.fullmatch("[0-9]", text) else text


# names that Windows keeps for devices, whatever stands behind a dot
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
LONGEST_NAME = 200  # bytes; a file system takes 255, and the names of files are made of it


def folder_name(text):
    """A run's name: one folder, no path, one that every system takes."""
    if not re.fullmatch(r"\w[\w.+=-]*", text):
        fault = "is no folder name"
    elif len(text.encode()) > LONGEST_NAME:
        fault = f"has {len(text.encode())} bytes, {LONGEST_NAME} at most are taken"
    elif _DEVICE.fullmatch(text) or text.endswith("."):
        fault = "is a name that Windows does not take"
    else:
        return text
    raise argparse.ArgumentTypeError(
        f"{shown(text)} {fault}; use letters, digits and . _ + = -, with a letter or digit first "
        f"and no dot at the end"
    )


def to_folder_name(text):
    """The folder name that is most like `text`; "" where nothing is left of it."""
    text = re.sub(r"[^\w.+=-]+", "-", text).strip("-.+=")
    text = text.encode()[: LONGEST_NAME - 20].decode(errors="ignore").rstrip("-.+=")
    return f"run-{text}" if _DEVICE.fullmatch(text) else text


def out_file(text):
    """A file to write, in a folder that exists."""
    if os.path.isdir(text) or not os.path.basename(text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no file; name one")
    folder, name = os.path.split(text)
    if folder and not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"{shown(text)}: there is no folder {folder}")
    if len(os.fsencode(name)) > 240:  # 255, less what a temporary name has more
        raise argparse.ArgumentTypeError(f"{shown(text)} is too long a name; 240 bytes at most")
    return text


def out_folder(text):
    """A folder to write to, which is made where it is missing."""
    there = os.path.abspath(text)
    while not os.path.lexists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise argparse.ArgumentTypeError(f"{shown(text)}: {shown(there)} is no folder")
    if len(os.path.abspath(text)) > 3000 or any(
        len(os.fsencode(name)) > 255 for name in text.replace(os.sep, "/").split("/")
    ):
        raise argparse.ArgumentTypeError(f"{shown(text)} is too long; 255 bytes a name at most")
    return text
