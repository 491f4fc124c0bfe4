"""The Chromium of this machine for tests that look at pages as a user would."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), "")
needed = pytest.mark.skipif(not CHROMIUM, reason="NOT CHECKED: pages in a browser; no chromium or google-chrome is installed")


@contextmanager
def looking(at: str, login: tuple[str, str] | None = None) -> Iterator[Page]:
    """A page of the server at an address; asking any other server, and any error of its own, is a failure of the test."""
    told: list[str] = []
    with sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        known = {"username": login[0], "password": login[1]} if login else None
        page = chromium.new_context(viewport={"width": 1280, "height": 900}, http_credentials=known).new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if _elsewhere(request.url, at) else None)
        yield page
        chromium.close()
    assert told == []


def _elsewhere(url: str, at: str) -> bool:
    asked = urlsplit(url)
    return asked.scheme not in ("data", "blob") and asked.netloc != urlsplit(at).netloc
