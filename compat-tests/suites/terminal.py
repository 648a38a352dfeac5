"""A terminal with a program on it: what a person sees and types."""

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time


class Terminal:
    """Runs a command on a terminal of its own; `seen` is all that came."""

    def __init__(self, *words, rows=30, columns=100, env=None):
        self.seen, self.at, self.code = "", 0, None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                self.size(rows, columns, 0)
                os.execvpe(words[0], words, {**os.environ, "TERM": "xterm", **(env or {})})
            finally:
                os._exit(99)

    def size(self, rows, columns, fd=None):
        """A window of another size; who is on the terminal hears of it."""
        fcntl.ioctl(self.fd if fd is None else fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds):
        """Reads what is there within a time; false at the end."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError as err:
            if err.errno != errno.EIO:
                raise
            data = b""
        self.seen += data.decode(errors="replace")
        return bool(data)

    def expect(self, pattern, seconds=60):
        """Waits for a pattern in what came since the last one; the match."""
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.seen[self.at:], re.M)
            if found:
                self.at += found.end()
                return found
            if not self.read(max(0, deadline - time.monotonic())) or time.monotonic() > deadline:
                if re.search(pattern, self.seen[self.at:], re.M):
                    continue
                raise AssertionError(f"no {pattern!r} in {self.seen[-1500:]!r}")

    def type(self, text):
        os.write(self.fd, text.encode())

    def echoes(self):
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self.fd)[3] & termios.ECHO)

    def end(self, seconds=60):
        """Waits for the end of the program; its exit code, negative for a signal."""
        deadline = time.monotonic() + seconds
        while self.read(max(0, deadline - time.monotonic())) and time.monotonic() < deadline:
            pass
        if time.monotonic() >= deadline:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def interrupt(self):
        os.kill(self.pid, signal.SIGINT)
