"""The terminal: what is shown there, and what happens when it is gone.

A command writes to standard output and standard error; behind them may be a terminal that is
closed, a pipe whose reader has left, a full disk, or a code page without half of the letters. None
of these may end a run or cost a traceback.
"""

import errno
import functools
import os
import re
import sys
from contextlib import contextmanager

# control characters, line breaks of Unicode, marks that turn the direction of writing, surrogates
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text, keep=""):
    """`text` with every control character, line break and surrogate as an escape: \\x1b, \\n.

    For names of files, folders and classes, which may hold anything. Characters of `keep` stay. A
    byte that is no UTF-8, which Python reads as a surrogate, becomes \\xe9.
    """

    def escape(match):
        letter = match[0]
        if letter in keep:
            return letter
        code = ord(letter)
        if 0xDC80 <= code <= 0xDCFF:  # surrogateescape
            code -= 0xDC00
        return _SHORT.get(letter) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")

    return _UNSAFE.sub(escape, str(text))


def byte_size(n):
    """Bytes in words: "1.5 GiB"."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while n >= 1024 and len(units) > 1:
        n /= 1024
        units.pop(0)
    return f"{n:,.0f} {units[0]}" if n >= 100 or units[0] == "bytes" else f"{n:.1f} {units[0]}"


def plural(n, word):
    """A number and what it counts: "1 epoch", "2 epochs"."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


class Guarded:
    """A text stream that never raises: once writing has failed, it swallows what is written.

    Letters that its encoding lacks become escapes; with `escape`, control characters do too.
    Everything but `write` and `flush` is the stream's own.

    lost    the OSError or ValueError of the write that has failed, else None
    told    whether somebody has said so to the user
    """

    def __init__(self, stream, escape):
        self._stream, self._escape = stream, escape
        self.lost, self.told = None, False

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self):
        return self._stream is not None and self.lost is None and self._stream.isatty()

    def write(self, text):
        shown = visible(text, "\n\t") if self._escape else text
        self._attempt(lambda: self._write(shown))
        return len(text)

    def flush(self):
        self._attempt(lambda: self._stream.flush())

    def _write(self, text):
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _attempt(self, action):
        if self.lost is not None or self._stream is None:  # None: closed before Python began
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: the stream has been closed
            self.lost = error
            self._drain()

    def _drain(self):
        """Let what is buffered run into nothing: Python writes it at exit, and would complain."""
        if self._stream in (sys.__stdout__, sys.__stderr__):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            except (OSError, ValueError):  # closed
                pass
            finally:
                os.close(nowhere)


def lost(stream):
    """Why a stream within `guarded` takes nothing any more; None while it does."""
    return getattr(stream, "lost", None)


def reason(error):
    """What has happened to a stream, in words."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def guarded():
    """Standard output and error never raise within this block; see `Guarded`."""
    before = sys.stdout, sys.stderr
    if not isinstance(sys.stdout, Guarded):
        sys.stdout = Guarded(sys.stdout, escape=True)
    if not isinstance(sys.stderr, Guarded):  # progress bars move the cursor: no escapes
        sys.stderr = Guarded(sys.stderr, escape=False)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def command(main):
    """Decorates main(argv) of a script, which then writes to guarded streams.

    If the reader has left (| head), the command ends as it would have, in silence. If output is
    lost for another reason and nobody has said so (console.log does), it ends in one line with exit
    code 1.
    """
    prog = os.path.basename(main.__code__.co_filename)

    @functools.wraps(main)
    def guarded_main(argv=None):
        with guarded():
            try:
                result = main(argv)
            except SystemExit as end:
                if not end.code:  # --help; else it has failed for a reason of its own
                    _require_output(prog)
                raise
            _require_output(prog)
            return result

    return guarded_main


def _require_output(prog):
    """End in one line where the output of a command was lost, but for a reader that has left."""
    sys.stdout.flush()
    error = lost(sys.stdout)
    left = isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ESHUTDOWN)
    if error is not None and not left and not sys.stdout.told:
        complain(f"{prog}: standard output: {reason(error)}")
        raise SystemExit(1)


def complain(text):
    """A message to standard error: one line, or several where the message has several."""
    print(visible(text, "\n"), file=sys.stderr)
