"""Object stores that cannot be reached: what is said of them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from index.folder import Folder
from index.uri import StoreError, asking, open_uri, shown_uri

NOBODY = "endpoint_override=127.0.0.1:9&scheme=http"
NO_KEY = (
    "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of Could not "
    "create a OAuth2 access token error_info={reason=, domain=, metadata={gcloud-cpp.retry.reason="
    "retry-policy-exhausted}})"
)


def test_a_store_of_google_that_does_not_answer_is_named_with_what_to_do() -> None:
    uri = f"gs://anonymous@pictures/cats?{NOBODY}&retry_limit_seconds=1"
    fs, path = open_uri(uri)
    with pytest.raises(StoreError) as raised, asking(shown_uri(uri)):
        fs.get_file_info(path)
    said = str(raised.value)
    assert said.startswith("gs://pictures/cats: the object store could not be reached, or refused")
    assert "Could not connect to server). It needs" in said
    assert "GOOGLE_APPLICATION_CREDENTIALS" in said
    assert "gs://anonymous@BUCKET" in said
    assert "error_info" not in said


def test_each_store_asks_for_its_own_credentials() -> None:
    amazon = pytest.raises(StoreError, match=r"AWS_ACCESS_KEY_ID.*the same command again\.$")
    google = pytest.raises(StoreError, match=r"access token\). It needs.*GOOGLE_APPLICATION_CRED")
    with amazon, asking("s3://b"):
        raise OSError("When listing objects: AWS Error ACCESS_DENIED during ListObjectsV2: no")
    with google, asking("gs://b"):
        raise OSError(NO_KEY)


def test_what_is_no_store_of_objects_keeps_its_words() -> None:
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] not yours$"), asking("s3://b"):
        raise PermissionError(13, "not yours")
    with pytest.raises(StoreError, match=r"^inner"), asking("outer"), asking("inner"):
        raise OSError("AWS Error")


@pytest.mark.parametrize(
    ("uri", "seconds"),
    [("gs://b/x", 60), ("gs://b/x?scheme=http", 60), ("gs://b/x?retry_limit_seconds=5", 5)],
)
def test_google_is_asked_for_a_minute_and_not_a_quarter_of_an_hour(uri: str, seconds: int) -> None:
    fs, path = open_uri(uri)
    assert fs.__reduce__()[1][0]["retry_time_limit"] == timedelta(seconds=seconds)
    assert str(Folder(fs, path)) == "gs://b/x"


@pytest.mark.parametrize(("text", "shown"), [("/x/a\udcff", r"/x/a\\xff"), ("a\0b", r"a\\0b")])
def test_a_path_that_no_catalog_can_hold_is_refused_in_a_sentence(text: str, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"^{shown}: paths have to be UTF-8 text"):
        Folder.at(text)
