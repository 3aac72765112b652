"""What a person sees of a web page: a headless Chromium, spoken to through a pipe.

The protocol is that of Chromium's developer tools: JSON documents, each ended by a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1920, 1080
LONGEST_SILENCE = 60
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-quic", f"--window-size={WIDTH},{HEIGHT}"),
]


def find_chromium() -> str | None:
    """The program, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab.

    Args:
        commands, answers: ends of the browser's two pipes.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.unread = b""
        self.asked = 0
        self.tab: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.tab = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **params: Any) -> Any:
        """The answer to one command; events in between are passed over."""
        self.asked += 1
        command = {"id": self.asked, "method": method, "params": params, **self.tab}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self.asked:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self) -> bytes:
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.answers], [], [], LONGEST_SILENCE)
            assert ready, f"the browser has not answered for {LONGEST_SILENCE} s"
            read = os.read(self.answers, 1 << 16)
            assert read, "the browser has ended"
            self.unread += read
        message, _, self.unread = self.unread.partition(b"\0")
        return message

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30.0) -> Any:
        """The value of an expression, once it is true."""
        until = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            if time.monotonic() > until:
                raise TimeoutError(f"{script}\n{self.evaluate('document.body.innerText')}")
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Goes to an address, whose page then loads."""
        self.call("Page.navigate", url=url)

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A new browser with one tab; it ends with the block.

    Args:
        profile: a new folder for what the browser writes.
    """
    program = find_chromium()
    assert program is not None
    to_read, commands = os.pipe()
    answers, to_write = os.pipe()
    flags = [*FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    # Chromium reads from descriptor 3 and writes to 4.
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}', program, *flags],
        pass_fds=(to_read, to_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        try:
            process.wait(timeout=5)  # a browser whose pipe is closed ends
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
