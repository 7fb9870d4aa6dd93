"""The status page in a browser: it says when it is old, and a phone can show it."""

import pytest

from pipeline import alerts, status_page
from tests.browser.conftest import DESKTOP, PHONE
from tests.conftest import settings_for, synthetic_domain
from tests.pipeline.simulated import NOW, Live


@pytest.fixture
def page_file(root, store, catalog):
    settings = settings_for(root, synthetic_domain(), synthetic_domain("other"))
    Live(catalog).good_day("alfa", "a radar with quite a long name", until=4)
    Live(catalog).skipped(3, "a_file_with_a_long_name_" * 5 + ".h5 cannot be read")
    Live(catalog, "other").good_day("brav")
    alerts.check(settings, store, catalog, NOW)
    return status_page.write(settings, store, catalog, NOW)


def opened(visit, path, minutes, size):
    """The page so many minutes after it was written."""
    now = 1000 * (int(NOW.timestamp()) + 60 * minutes)
    text = path.read_text().replace("Date.now()", str(now))
    assert str(now) in text
    path.write_text(text)
    return visit(path.as_uri(), size)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_fresh_page_says_at_once_what_is_wrong_and_fits(visit, page_file, size):
    page = opened(visit, page_file, 2, size)
    assert page.get_by_role("status").inner_text().startswith("✕ NO FORECAST\n\nsmall: no forecast for 4 cycles")
    assert not page.locator("#old").is_visible()
    assert page.locator("section").first.get_attribute("id") == "small"  # the worst is first
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.title() == "✕ NO FORECAST - nowcasts"


@pytest.mark.parametrize(("minutes", "said"), [(12, "12 minutes old"), (300, "5 hours old"), (5000, "3 days old")])
def test_an_old_page_says_so_and_loses_its_colours(visit, page_file, minutes, said):
    page = opened(visit, page_file, minutes, DESKTOP)
    assert f"This page is {said}: the live process may be down" in page.locator("#old").inner_text()
    assert page.title() == "OLD - nowcasts"
    assert "grayscale" in page.get_by_role("status").evaluate("e => getComputedStyle(e).filter")
