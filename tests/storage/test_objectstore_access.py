"""Credentials, profiles and addresses of object stores, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from captcha_ray.errors import InputError
from captcha_ray.storage import objectstore, retries
from captcha_ray.storage.retries import DeniedError, StoreError
from tests.support.buckets import CALLS, DATA, check_sentence, client, keys
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, create_bucket

# --- credentials and endpoints


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_named_in_no_message(
    rclone_server: dict[str, str], use: Callable[..., None], call: str, wrong: str
) -> None:
    use(rclone_server, **{wrong: "token-of-tests"})
    with pytest.raises(DeniedError) as caught:
        CALLS[call][2]()
    check_sentence(caught.value, "s3://bucket/")


def profiles(folder: Path, text: str) -> dict[str, str]:
    """Environment that knows an address and the profiles of a file, no keys."""
    (folder / "credentials").write_text(text)
    return {"AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"), "AWS_REGION": "us-east-1"}


KEYS = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
OTHERS = "aws_access_key_id = other\naws_secret_access_key = another\n"


@pytest.mark.parametrize("profile", ["night", pytest.param("", id="default")])
def test_a_profile_reads_writes_and_lists(
    rclone_server: dict[str, str], use: Callable[..., None], tmp_path: Path, profile: str
) -> None:
    here, other = (profile, "default") if profile else ("default", "night")
    environment = profiles(tmp_path, f"[{other}]\n{OTHERS}[{here}]\n{KEYS}")
    environment["AWS_ENDPOINT_URL"] = rclone_server["AWS_ENDPOINT_URL"]
    use(environment, **({"AWS_PROFILE": profile} if profile else {}))
    assert keys("s3://bucket") == ["key"]
    assert objectstore.get("s3://bucket/key")[0] == DATA
    objectstore.put("s3://bucket/by-profile", b"x", exclusive=True)
    assert objectstore.head("s3://bucket/by-profile")
    objectstore.delete("s3://bucket/by-profile")
    assert keys("s3://bucket") == ["key"]
    with pytest.raises(StoreError, match="unsupported characters") as caught:  # this server's word: it let us in
        objectstore.get("s3://bucket/an//odd/../key")
    assert not isinstance(caught.value, PermissionError)


def test_a_profile_names_the_address_of_its_store(
    rclone_server: dict[str, str], use: Callable[..., None], tmp_path: Path
) -> None:
    """For listing and for reading alike; else keys meant for one store would be sent to another."""
    address = f"endpoint_url = {rclone_server['AWS_ENDPOINT_URL']}\n"
    use(profiles(tmp_path, f"[night]\n{KEYS}{address}"), AWS_PROFILE="night")
    assert objectstore.endpoint() == rclone_server["AWS_ENDPOINT_URL"]
    assert keys("s3://bucket") == ["key"]
    assert objectstore.get("s3://bucket/key")[0] == DATA


def test_an_object_is_replaced_only_if_it_is_what_it_is_thought_to_be(
    rclone_server: dict[str, str], use: Callable[..., None]
) -> None:
    use(rclone_server)
    objectstore.put("s3://bucket/lease", b"1")
    assert not objectstore.compare_and_swap("s3://bucket/lease", b"3", expected=b"2")
    assert objectstore.get("s3://bucket/lease")[0] == b"1"
    assert objectstore.compare_and_swap("s3://bucket/lease", b"2", expected=b"1")
    assert objectstore.get("s3://bucket/lease")[0] == b"2"
    objectstore.delete("s3://bucket/lease")
    with pytest.raises(FileNotFoundError):
        objectstore.compare_and_swap("s3://bucket/lease", b"2", expected=b"1")


@pytest.mark.parametrize("head", ['<?xml version="1.0"?>\n', ""])
def test_of_a_stores_answer_only_what_is_meant_for_people_is_kept(head: str) -> None:
    answer = f"{head}<Error><Code>Denied</Code><Message>No.</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>"
    said = retries._sentence(ValueError(f"refused {answer} Debug source: x"))
    assert said == "ValueError: refused Denied No."
    assert retries._sentence(ValueError("plain")) == "ValueError: plain"


@pytest.mark.parametrize("call", CALLS)
def test_an_absent_or_empty_profile_is_named(
    rclone_server: dict[str, str], use: Callable[..., None], tmp_path: Path, call: str
) -> None:
    environment = profiles(tmp_path, "[empty]\nregion = us-east-1\n")
    environment["AWS_ENDPOINT_URL"] = rclone_server["AWS_ENDPOINT_URL"]
    use(environment, AWS_PROFILE="absent")
    with pytest.raises(StoreError, match=r"The config profile \(absent\) could not be found"):
        CALLS[call][2]()
    use(environment, AWS_PROFILE="empty")
    with pytest.raises(InputError, match=r"no credentials|Unable to locate credentials"):
        CALLS[call][2]()


def test_a_profiles_region_is_that_of_all_clients(use: Callable[..., None], tmp_path: Path) -> None:
    environment = profiles(tmp_path, f"[night]\n{KEYS}")
    del environment["AWS_REGION"]
    (tmp_path / "config").write_text("[profile night]\nregion = eu-west-1\n")
    use(environment, AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_PROFILE="night")
    assert objectstore.s3_client("s3://bucket").meta.region_name == "eu-west-1"
    assert objectstore.store_client("s3://bucket").config.get("region") == "eu-west-1"


def test_the_endpoint_of_one_service_is_that_of_all_clients(
    rclone_server: dict[str, str], use: Callable[..., None]
) -> None:
    environment = {name: value for name, value in rclone_server.items() if name != "AWS_ENDPOINT_URL"}
    use(environment, AWS_ENDPOINT_URL_S3=rclone_server["AWS_ENDPOINT_URL"])
    assert keys("s3://bucket") == ["key"]
    assert objectstore.get("s3://bucket/key")[0] == DATA


def test_without_credentials_an_open_bucket_is_read(moto_server: dict[str, str], use: Callable[..., None]) -> None:
    use(moto_server)
    create_bucket(moto_server, "open")
    for key in ("key", "odd//key"):
        client().put_object(Bucket="open", Key=key, Body=DATA, ACL="public-read")
    use({name: moto_server[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}, AWS_SKIP_SIGNATURE="true")
    assert keys("s3://open") == ["key", "odd//key"]
    assert [objectstore.get(f"s3://open/{key}")[0] for key in keys("s3://open")] == [DATA, DATA]


def test_an_endpoint_is_used_from_the_next_request_on(
    moto_server: dict[str, str], rclone_server: dict[str, str], use: Callable[..., None]
) -> None:
    create_bucket(moto_server, "only-there")
    use(rclone_server, AWS_ENDPOINT_URL_S3=rclone_server["AWS_ENDPOINT_URL"])
    with pytest.raises(FileNotFoundError):
        keys("s3://only-there")
    with pytest.raises(FileNotFoundError):
        objectstore.put("s3://only-there/key", b"x")
    objectstore.use_endpoint(moto_server["AWS_ENDPOINT_URL"])
    objectstore.put("s3://only-there/key", b"x")
    assert keys("s3://only-there") == ["key"]


def test_odd_keys_of_other_stores_are_refused_in_a_sentence() -> None:
    with pytest.raises(StoreError, match=r"^gs://bucket: keys with empty, .* are read on S3 only$"):
        objectstore.get("gs://bucket/a//b")


def test_an_endpoint_that_is_in_use_leaves_the_clients_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(objectstore, "forget_clients", lambda: forgotten.append(os.environ["AWS_ENDPOINT_URL"]))
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for url in ("http://127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:2"):
        objectstore.use_endpoint(url)
    assert forgotten == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    assert "AWS_ENDPOINT_URL_S3" not in os.environ
