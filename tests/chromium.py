"""A headless Chromium that a test drives: DevTools' protocol over two pipes, a message ends with a zero byte."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_S = 200.0  # on a machine that others keep busy


def program() -> str | None:
    """The Chromium of this machine, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """A context with one page. heard: what the page did since it was opened, as (kind, text): errors, requests."""

    def __init__(self, profile: Path):
        to_child, self.out = os.pipe()
        self.into, from_child = os.pipe()
        options = ["--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars"]
        options += ["--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking"]
        options += ["--no-sandbox"] * (os.getuid() == 0) + [f"--user-data-dir={profile}", "about:blank"]
        # its ends of the pipes are files 3 and 4
        shell = ["bash", "-c", f'exec "$@" 3<&{to_child} 4>&{from_child}', "bash", program(), *options]
        how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(shell, pass_fds=(to_child, from_child), **how)
        os.close(to_child)
        os.close(from_child)
        self.rest, self.last, self.session, self.heard, self.events = b"", 0, None, [], []
        try:
            target = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
            facts = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self.session = facts["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.into)

    # ---- what a test asks --------------------------------------------------------------------------------------

    def open(self, path: Path, width: int, height: int, scheme: str = "light"):
        """Show a file, once it is loaded, in a window of so many CSS pixels; scheme: light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.heard, self.events = [], []
        self.ask("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self.events:
            self._hear()

    def value(self, expression: str):
        """What JavaScript makes of an expression on the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def point(self, x: float, y: float):
        """Move the pointer."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, whole: bool = True) -> bytes:
        """The page as a PNG file, down to its end, or as the window shows it."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def printed(self) -> bytes:
        """The page as a PDF file, as it is printed on A4."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=True, **paper)["data"])

    # ---- messages ----------------------------------------------------------------------------------------------

    def ask(self, method: str, **params) -> dict:
        """The result of a method of the protocol."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._hear()
            if answer.get("id") == self.last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _hear(self) -> dict:
        """The next message; what it says about the page is kept."""
        until = time.monotonic() + WAIT_S
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"Chromium says nothing for {WAIT_S:.0f} s"
            part = os.read(self.into, 1 << 20)
            assert part, f"Chromium has ended: {self.process.wait()}"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        self._keep(message.get("method", ""), message.get("params", {}))
        return message

    def _keep(self, method, params):
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.heard.append(("exception", json.dumps(params["exceptionDetails"])))
        elif method == "Runtime.consoleAPICalled":
            self.heard.append(("console", json.dumps(params["args"])))
        elif method == "Log.entryAdded":
            self.heard.append(("log", f"{params['entry'].get('url')} {params['entry']['text']}"))
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.heard.append(("request", params["request"]["url"]))
