"""What all command lines share: a parser that ends in one line, and the types of flags.

Each type says in its error what is allowed.
"""

import argparse
import difflib
import math
import os
import re


class Parser(argparse.ArgumentParser):
    """Says what was wrong in one line, without the page of usage before it."""

    def __init__(self, prog, **words):
        super().__init__(prog, allow_abbrev=False, formatter_class=HelpFormatter, **words)

    def error(self, message):
        if message.startswith("unrecognized arguments: --"):
            word = message.split()[2].split("=")[0].replace("-", "_")
            known = {f.replace("-", "_"): f for a in self._actions for f in a.option_strings}
            near = difflib.get_close_matches(word, known, 1)
            message += f"; did you mean {known[near[0]]}?" if near else ""
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


class HelpFormatter(argparse.HelpFormatter):
    """Appends the default where there is one number or word to say."""

    def _get_help_string(self, action):
        default = getattr(action, "value", action.default)  # of config.flag, else of argparse
        if not action.option_strings or isinstance(default, (bool, list, type(None))):
            return action.help
        if default is argparse.SUPPRESS or "(default:" in action.help:
            return action.help
        return f"{action.help} (default: {default})"


# --- types of flags -----------------------------------------------------------------------------


def number(text, kind, allowed, test):
    """Parse one number or raise the error that argparse prints."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and test(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
    return value


MOST = 2**31 - 1  # what every library takes for a whole number
LARGEST = 1e30  # of a float32, with room for products


def positive(text):
    allowed = f"a number above 0, {LARGEST:g} at most"
    return number(text, float, allowed, lambda x: 0 < x <= LARGEST)


def non_negative(text):
    allowed = f"a number of 0 or more, {LARGEST:g} at most"
    return number(text, float, allowed, lambda x: 0 <= x <= LARGEST)


def fraction(text):
    return number(text, float, "a number between 0 and 1, both excluded", lambda x: 0 < x < 1)


def probability(text):
    return number(text, float, "a number from 0 up to, not including, 1", lambda x: 0 <= x < 1)


def portion(text):
    return number(text, float, "a number above 0, 1 at most", lambda x: 0 < x <= 1)


def whole(least, most=MOST):
    """The type of whole numbers in a range."""
    allowed = f"a whole number of {least} or more, {most} at most"

    def parse(text):
        return number(text, int, allowed, lambda x: least <= x <= most)

    return parse


count, count_or_zero = whole(1), whole(0)
batch = whole(2)  # BatchNorm needs a second value where a map is down to one pixel
processes = whole(0, 1024)
threads = whole(1, 1024)


def folder_name(text):
    """A run's name: one folder, no path."""
    if not re.fullmatch(r"\w[\w.+=-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no folder name; use letters, digits and . _ + = -, "
            "with a letter or digit first"
        )
    return text


def out_file(text):
    """A file to write, in a folder that exists."""
    if not text or os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no file; name one")
    folder = os.path.dirname(text) or "."
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {folder}")
    return text
