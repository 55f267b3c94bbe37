"""Environment files: put with other people's clients, read by tasks, found in no file."""

import secrets

import boto3
import pytest
from botocore.exceptions import ClientError
from daemon import REGION
from tasks import ROLE
from test_secrets import places

BUCKET = "e2e-config"
FOREVER = "while :; do sleep 1; done"


def refused(call, **arguments):
    with pytest.raises(ClientError) as error:
        call(**arguments)
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


@pytest.fixture
def s3(running):
    client = running.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=found["Key"])
    client.delete_bucket(Bucket=BUCKET)


def run(tasks, image, command, *keys, **members):
    files = [{"type": "s3", "value": f"arn:aws:s3:::{BUCKET}/{key}"} for key in keys]
    definition = tasks.ecs.register_task_definition(
        family="environment-files",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="1024",
        memory="2048",
        executionRoleArn=ROLE,
        containerDefinitions=[
            {
                "name": "main",
                "image": image,
                "command": ["sh", "-c", command],
                "environment": [{"name": "SAID", "value": "by the definition"}],
                "environmentFiles": files,
                "stopTimeout": 2,
            }
        ],
    )["taskDefinition"]
    return tasks.run(definition["taskDefinitionArn"], **members)


def test_a_container_has_what_its_files_say_and_no_file_of_the_host_does(running, images, tasks, s3, tmp_path):
    word = secrets.token_hex(8)
    first, second, over = tmp_path / "first.env", tmp_path / "second.env", tmp_path / "over.env"
    first.write_text(f"# of the first\nONE=hidden-{word}\nSAID=never\nQUOTED=\"a b\" \nPATH_OF=a=b\n")
    second.write_text("ONE=never\nTWO=of the second\n")
    over.write_text("ONE=over\n")
    running.aws("s3", "cp", str(first), f"s3://{BUCKET}/web/first.env")
    s3.upload_file(str(second), BUCKET, "web/all ä's.env")
    s3.put_object(Bucket=BUCKET, Key="over.env", Body=over.read_bytes())

    show = 'echo "$ONE|$TWO|$SAID|$QUOTED|$PATH_OF"'
    task = run(tasks, images.busybox, f"{show} | sed s/hidden-//; {FOREVER}", "web/first.env", "web/all ä's.env")
    output = tasks.wait_for_output(task, "\n")
    assert output == f"{word}|of the second|by the definition|\"a b\" |a=b\n"
    hidden = f"hidden-{word}".encode()
    found = places(running, [hidden, b"by the definition"])
    assert found[b"by the definition"], "the search finds nothing"
    assert found[hidden] == []
    tasks.stop(task)

    # A task's own files stand in the place of the definition's.
    own = [{"name": "main", "environmentFiles": [{"type": "s3", "value": f"arn:aws:s3:::{BUCKET}/over.env"}]}]
    task = run(tasks, images.busybox, show, "web/first.env", overrides={"containerOverrides": own})
    task = tasks.wait(task, "STOPPED")
    assert tasks.output(task).decode() == "over||by the definition||\n"
    assert task["overrides"]["containerOverrides"][0]["environmentFiles"] == own[0]["environmentFiles"]

    task = tasks.wait(run(tasks, images.busybox, show, "none.env"), "STOPPED")
    assert (task["stopCode"], task["stoppedReason"]) == (
        "TaskFailedToStart",
        f"ResourceInitializationError: failed to download env files: arn:aws:s3:::{BUCKET}/none.env: "
        "NoSuchKey: The specified key does not exist.",
    )


def test_objects_are_put_listed_read_and_deleted(running, s3):
    content = bytes(range(256)) * 16
    s3.put_object(Bucket=BUCKET, Key="a/1", Body=content, ContentType="text/x-env")
    for key in ("a/2", "a/b/3", "c"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"")
    found = s3.get_object(Bucket=BUCKET, Key="a/1")
    assert (found["Body"].read(), found["ContentType"]) == (content, "text/x-env")
    head = s3.head_object(Bucket=BUCKET, Key="a/1")
    assert (head["ContentLength"], head["ETag"]) == (len(content), found["ETag"])

    page = s3.list_objects_v2(Bucket=BUCKET, Delimiter="/", MaxKeys=1)
    assert [one["Prefix"] for one in page["CommonPrefixes"]] == ["a/"] and page["IsTruncated"]
    page = s3.list_objects_v2(Bucket=BUCKET, Delimiter="/", ContinuationToken=page["NextContinuationToken"])
    assert [one["Key"] for one in page["Contents"]] == ["c"] and not page["IsTruncated"]
    page = s3.list_objects_v2(Bucket=BUCKET, Prefix="a/")
    assert [(one["Key"], one["Size"]) for one in page["Contents"]] == [("a/1", len(content)), ("a/2", 0), ("a/b/3", 0)]
    assert BUCKET in [one["Name"] for one in s3.list_buckets()["Buckets"]]
    listed = running.aws("s3", "ls", f"s3://{BUCKET}/a/")
    assert "PRE b/" in listed and "4096 1\n" in listed

    assert refused(s3.get_object, Bucket=BUCKET, Key="none") == (404, "NoSuchKey")
    assert refused(s3.head_object, Bucket=BUCKET, Key="none")[0] == 404
    assert refused(s3.list_objects_v2, Bucket="no-such-bucket") == (404, "NoSuchBucket")
    assert refused(s3.create_bucket, Bucket=BUCKET) == (409, "BucketAlreadyOwnedByYou")
    assert refused(s3.delete_bucket, Bucket=BUCKET) == (409, "BucketNotEmpty")
    assert refused(s3.get_object_acl, Bucket=BUCKET, Key="c") == (501, "NotImplemented")
    assert refused(s3.put_object, Bucket=BUCKET, Key="large", Body=bytes((256 << 10) + 1)) == (400, "EntityTooLarge")
    s3.delete_object(Bucket=BUCKET, Key="a/1")
    assert refused(s3.get_object, Bucket=BUCKET, Key="a/1") == (404, "NoSuchKey")

    # Somebody else's key.
    access, _ = running.keys
    stranger = boto3.session.Session().client(
        "s3", endpoint_url=running.url, region_name=REGION, aws_access_key_id=access, aws_secret_access_key="wrong"
    )
    assert refused(stranger.get_object, Bucket=BUCKET, Key="c")[1].startswith("InvalidSignature")
