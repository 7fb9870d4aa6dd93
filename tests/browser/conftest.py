"""A browser that listens for complaints, and a web server; the pages' tests share them."""

import functools
import http.server
import os
import shutil
import threading
from contextlib import contextmanager

import pytest

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(
    scope="module"
)  # an open browser keeps an event loop at work, which changes what Prefect's calls return
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="`make test` installs playwright (extra `dev`)")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield started
        started.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder):
    """The address of a folder on a web server of this machine."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def visit(browser):
    """Opens an address; at the end nothing was complained of and nothing was asked for elsewhere."""
    complaints, contexts = [], []

    def opened(address, size=DESKTOP, motion="reduce", ready=None, **settings):
        context = browser.new_context(
            viewport=size, has_touch=size is PHONE, is_mobile=size is PHONE, reduced_motion=motion, **settings
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15000)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        near = ("file:", "data:", "http://127.0.0.1:")
        page.on("request", lambda r: None if r.url.startswith(near) else complaints.append(f"asked for {r.url}"))
        page.goto(address)
        if ready:
            page.wait_for_function(ready)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints
