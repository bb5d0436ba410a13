"""A browser for the stories of a file, and a dashboard for each story."""

import os

import pytest

from tests import chromium
from tests.servers import dashboard
from tests.story.pages import end


@pytest.fixture(scope="module")
def browser():
    """Give a Chromium, or skip or fail where there is none."""
    path = chromium.find()
    if path is None:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("REQUIRE_BROWSER=1 and there is no Chromium")
        pytest.skip("no Chromium; `python -m tests.chromium` installs one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=chromium.FLAGS)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _pages_are_closed(browser):
    """Close what a story opened: pages that are left go on asking and drawing."""
    yield
    for context in browser.contexts:
        context.close()


@pytest.fixture
def site(tmp_path):
    """Give the address and process of a dashboard, and its folder of runs."""
    with dashboard(tmp_path) as (address, process):
        yield address, process, tmp_path / "runs"
        for home in (tmp_path / "runs").glob("*/"):
            end(home)
