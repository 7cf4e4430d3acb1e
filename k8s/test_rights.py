"""What each account may do in S3, tried with SPARE's own store on an S3 API that asks its IAM."""

import json
import sys
import urllib.request
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from serving.services import free_port, process, s3_server, wait_for
from spare_core.errors import SpareError
from spare_core.store import open_store
from spare_core.takedown.ledger import Event, Ledger

HERE = Path(__file__).parent / "aws"
RECORD, WORK = "s3://spare-record", "s3://spare-work"
DUTIES = sorted(path.stem for path in (HERE / "iam").glob("*.json"))
ADDS = {
    f"{RECORD}/prod/requests/x": {"train", "takedown"},
    f"{RECORD}/prod/artifacts/x": {"train", "takedown", "evaluate"},
    f"{RECORD}/prod/evidence/x": {"train", "takedown", "evaluate", "promote"},
    f"{RECORD}/prod/ledger/x": {"takedown"},
    f"{RECORD}/prod/promotions/x": {"takedown", "promote"},
    f"{RECORD}/models/x": set(),
    f"{RECORD}/lists/x": set(),
    f"{WORK}/pipelines/x": {"train", "takedown", "evaluate"},
    f"{WORK}/mlflow/x": {"mlflow"},
}
READS = {
    f"{RECORD}/models/there": {"train", "takedown", "evaluate", "promote", "images"},
    f"{RECORD}/lists/there": {"train", "takedown", "evaluate", "promote"},
    f"{RECORD}/prod/ledger/there": {"train", "takedown", "evaluate", "promote", "audit"},
    f"{RECORD}/prod/artifacts/there": {"train", "takedown", "evaluate", "promote", "audit"},
    f"{RECORD}/prod/promotions/there": {"train", "takedown", "evaluate", "promote", "audit", "images"},
    f"{WORK}/pipelines/there": {"train", "takedown", "evaluate"},
    f"{WORK}/mlflow/there": {"mlflow"},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Address of the API, and the keys of a user for each duty."""
    log, port = tmp_path_factory.mktemp("moto") / "log", free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, log, {"INITIAL_NO_AUTH_ACTION_COUNT": "1000"}) as server:
        wait_for(server, f"{uri}/moto-api/", log)
        session = boto3.Session("first", "first", region_name="us-east-1")
        iam, s3 = (session.client(service, endpoint_url=uri) for service in ("iam", "s3"))
        made = {}
        for bucket in ("spare-record", "spare-work"):
            s3.create_bucket(Bucket=bucket)
        for address in READS:
            bucket, _, key = address.removeprefix("s3://").partition("/")
            s3.put_object(Bucket=bucket, Key=key, Body=b"there")
        for duty in DUTIES:
            iam.create_user(UserName=duty)
            policy = (HERE / "iam" / f"{duty}.json").read_text()
            iam.put_user_policy(UserName=duty, PolicyName=duty, PolicyDocument=policy)
            key = iam.create_access_key(UserName=duty)["AccessKey"]
            made[duty] = key["AccessKeyId"], key["SecretAccessKey"]
        text = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{uri}/moto-api/reset-auth", b"0", text)).close()
        yield uri, made


@pytest.fixture(params=DUTIES)
def duty(request, keys, monkeypatch):
    uri, made = keys
    monkeypatch.setenv("AWS_ENDPOINT_URL", uri)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made[request.param][0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made[request.param][1])
    return request.param


def may(call, address):
    folder, _, key = address.rpartition("/")
    try:
        call(open_store(folder), key)
    except SpareError as error:
        assert "403" in str(error) or "denied" in str(error).lower() or "not allow" in str(error), error
        return False
    return True


def test_an_account_adds_what_its_duty_is_and_nothing_else(duty):
    allowed = {address for address in ADDS if may(lambda store, key: store.create(f"{key}-{duty}", b"x"), address)}
    assert allowed == {address for address, duties in ADDS.items() if duty in duties}


def test_an_account_reads_what_its_duty_needs_and_nothing_else(duty):
    allowed = {address for address in READS if may(lambda store, key: store.read(key), address)}
    assert allowed == {address for address, duties in READS.items() if duty in duties}


def test_no_account_but_mlflows_deletes(duty, keys):
    s3 = boto3.Session(*keys[1][duty], region_name="us-east-1").client("s3", endpoint_url=keys[0])
    deleted = set()
    for address in READS:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        try:
            s3.delete_object(Bucket=bucket, Key=f"{key}-none")
            deleted.add(address)
        except s3.exceptions.ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert deleted == ({f"{WORK}/mlflow/there"} if duty == "mlflow" else set())


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The bucket for the record, made as aws/README.md says, but for its policy, of which moto sees no condition."""
    with s3_server(tmp_path, "unused") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="spare-record", ObjectLockEnabledForBucket=True)
        lock = json.loads((HERE / "record-object-lock.json").read_text())
        s3.put_object_lock_configuration(Bucket="spare-record", ObjectLockConfiguration=lock)
        yield s3


def test_what_the_ledger_wrote_cannot_be_deleted(record):
    Ledger(open_store(f"{RECORD}/prod"), "anna").append([Event("R-1", "received", {"due_at": "2027-01-01T00:00Z"})])
    (entry,) = record.list_object_versions(Bucket="spare-record", Prefix="prod/ledger/")["Versions"]
    with pytest.raises(ClientError, match="AccessDenied"):
        record.delete_object(Bucket="spare-record", Key=entry["Key"], VersionId=entry["VersionId"])


def test_stages_go_after_a_month(record):
    record.create_bucket(Bucket="spare-work")
    rules = json.loads((HERE / "work-lifecycle.json").read_text())
    record.put_bucket_lifecycle_configuration(Bucket="spare-work", LifecycleConfiguration=rules)
    (rule,) = record.get_bucket_lifecycle_configuration(Bucket="spare-work")["Rules"]
    assert (rule["Filter"]["Prefix"], rule["Expiration"]["Days"]) == ("pipelines/", 30)


def test_the_buckets_policy_only_takes_rights_away(record):
    document = (HERE / "record-bucket-policy.json").read_text()
    record.put_bucket_policy(Bucket="spare-record", Policy=document)
    policy = json.loads(document)
    assert {statement["Effect"] for statement in policy["Statement"]} == {"Deny"}
    guarded = {part.split("/")[2] for part in policy["Statement"][1]["Resource"]}
    assert guarded == {"ledger", "promotions", "evidence", "artifacts", "requests"}
