"""The pages of the model registry in a real browser: which release is in use, what it was made of, and its card are there to read."""

import browser
import mlflow_server
import pytest
import releases
from mlflow import MlflowClient

from unimed.release import promote
from unimed.release.journal import Said
from unimed.settings import Tracking

pytest.importorskip("flask_wtf", reason="NOT CHECKED: mlflow[auth], which the server needs, is not installed")
pytestmark = [pytest.mark.slow, browser.needed]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A server with two releases, of which the first was promoted, then the second."""
    folder = tmp_path_factory.mktemp("pages")
    with mlflow_server.known(folder) as address:
        for number in ("1", "2"):
            releases.add(folder, address, f"release {number}")
            promote.promote(Tracking(uri=address), number, Said("ann", f"reason {number}"))
        yield address


def text(uri: str, path: str, awaited: str, picture) -> str:
    """All that a page of the registry shows."""
    with browser.looking(uri, (mlflow_server.USER, mlflow_server.PASSWORD)) as page:
        page.goto(f"{uri}/#/models/{path}")
        page.wait_for_selector(f"text={awaited}")
        page.screenshot(path=picture, full_page=True)
        return page.inner_text("body")


def test_the_list_of_releases_shows_which_is_in_use_and_which_was(uri, tmp_path):
    shown = text(uri, "unimed-medvlm", "champion", tmp_path / "model.png")
    for alias in ("champion", "previous", "challenger"):
        assert alias in shown


def test_a_release_shows_its_tags_and_its_card(uri, tmp_path):
    shown = text(uri, "unimed-medvlm/versions/2", "champion", tmp_path / "version.png")
    tags = MlflowClient(uri, uri).get_model_version("unimed-medvlm", "2").tags
    assert len(tags) > 5
    for name in tags:
        assert name in shown
    assert "not a medical device" in shown


def test_the_journal_shows_who_changed_what_and_why(uri, tmp_path):
    shown = text(uri, "unimed-medvlm-journal/versions/2", "ann", tmp_path / "journal.png")
    assert "reason 2" in shown
