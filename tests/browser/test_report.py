"""The verification report in a real browser: from disk and from a web server, with and without scripts."""

import re
from datetime import timedelta

import pytest

from pipeline import operations
from tests.browser.conftest import DESKTOP, PHONE, served
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.cycles import T0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    settings = settings_for(folder / "root", synthetic_domain(model="optical_flow"))
    operations.backfill(settings, "small", T0, T0 + timedelta(minutes=30), NOW)
    return operations.report(settings, "small", None, None, folder / "out", NOW)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_report_opens_from_disk_and_nothing_runs_over_the_edge(written, visit, size):
    page = visit(written.page.as_uri(), size)
    assert page.title().startswith("Verification of small")
    pictures = page.locator("figure img")
    assert pictures.count() >= 7
    for n in range(pictures.count()):
        assert pictures.nth(n).evaluate("image => image.complete && image.naturalWidth > 300")
        assert pictures.nth(n).get_attribute("alt")
    # wide figures and tables scroll by themselves, the page does not
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_report_on_a_web_server_says_what_the_command_said_without_scripts(written, visit):
    with served(written.page.parent) as address:
        page = visit(f"{address}/{written.page.name}", java_script_enabled=False)
        said = page.locator("ul.summary li")
        assert [re.sub(r"\s+", " ", text) for text in said.all_inner_texts()] == written.summary
        assert page.get_by_role("heading", name="Rules of this verification").is_visible()
