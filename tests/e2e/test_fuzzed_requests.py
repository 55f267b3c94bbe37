"""Definitions and requests for tasks that are made from the API's own model, as botocore carries it, and sent over the wire:
each is taken or refused with one of the API's own errors and a text that names a member, and the daemon stays up."""

import json
import os
import random
import re

import botocore.session
import pytest

# In the emulated lab each takes some hundredths of a second.
REQUESTS = int(os.environ.get("BERTH_E2E_REQUESTS", "400"))
SEED = os.environ.get("BERTH_E2E_SEED", "definitions")
TEXTS = ["", " ", "x", "a\0b", "é", "/", "../..", "256", "-1", "1 vCPU", "ALL", "app", "x" * 300, "arn:aws:s3:::b/k", "\u2028"]
NUMBERS = [0, 1, -1, 7, 100, 1 << 31, (1 << 63) - 1, -(1 << 63), 1.5, 1e300]
# Where AWS's own words are not the member's name.
OTHER_WORDS = [
    "is not allowed on Fargate",
    "Cannot depend on container",
    "Invalid identifier: ",
    "No Container Instances",
    "The specified platform does not exist",
    "The specified capacity provider was not found",
]


def models():
    model = botocore.session.get_session().get_service_model("ecs")
    return {name: model.operation_model(name) for name in ("RegisterTaskDefinition", "RunTask")}


def leaves(shape, path=(), seen=()):
    """The path to each member that is no structure, with its shape; a list is the item `0`."""
    if shape.type_name == "structure":
        if shape.name in seen:
            return
        for name, member in shape.members.items():
            yield from leaves(member, (*path, name), (*seen, shape.name))
    elif shape.type_name == "list":
        yield from leaves(shape.member, (*path, 0), seen)
    else:
        yield path, shape


def own_value(random, shape):
    """A value of the member's own type."""
    match shape.type_name:
        case "string":
            return random.choice(shape.enum or ["x1", "256", "512", "/x", "net.x", "app"])
        case "boolean":
            return random.random() < 0.5
        case "map":
            return {"k": "v"}
        case _:
            return random.choice([0, 7, 30, 100])


def any_value(random, depth=2):
    kinds = [lambda: random.choice(TEXTS), lambda: random.choice(NUMBERS), lambda: None, lambda: random.random() < 0.5]
    if depth:
        kinds += [
            lambda: [any_value(random, depth - 1) for _ in range(random.randrange(3))],
            lambda: {random.choice(TEXTS): any_value(random, depth - 1) for _ in range(random.randrange(3))},
        ]
    return random.choice(kinds)()


def put(into, path, value):
    for step, after in zip(path, path[1:]):
        empty = [] if after == 0 else {}
        if step == 0:
            if not into or not isinstance(into[0], type(empty)):
                into[:1] = [empty]
            into = into[0]
        else:
            if not isinstance(into.get(step), type(empty)):
                into[step] = empty
            into = into[step]
    if path[-1] == 0:
        into[:1] = [value]
    else:
        into[path[-1]] = value


def base(operation, definition):
    if operation == "RunTask":
        subnets = {"awsvpcConfiguration": {"subnets": ["subnet-00000000000000000"]}}
        return {"taskDefinition": definition, "networkConfiguration": subnets}
    return {
        "family": "fuzzed",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{"name": "app", "image": "busybox"}, {"name": "other", "image": "busybox"}],
    }


def bare(text):
    return re.sub(r"[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize("operation", ["RegisterTaskDefinition", "RunTask"])
def test_what_the_model_can_make_is_taken_or_refused_by_name(running, operation):
    model = models()[operation]
    members = list(leaves(model.input_shape))
    words = {bare(step) for path, _ in members for step in path if step}
    # `tags` is told of as a tag, `subnets` as a subnet.
    words |= {word.removesuffix("s") for word in words}
    errors = {error.name for error in model.error_shapes} | {"SerializationException"}
    random_ = random.Random(f"{SEED} {operation}")
    wire = running.wire
    definition = wire.call("ecs", "RegisterTaskDefinition", base("RegisterTaskDefinition", None))
    definition = definition["taskDefinition"]["taskDefinitionArn"]
    outcomes = {"taken": 0, "refused": 0}
    for number in range(REQUESTS):
        request = base(operation, definition)
        for path, shape in random_.choices(members, k=random_.choice([1, 1, 1, 2, 5])):
            own = random_.random() < 0.7
            put(request, path, own_value(random_, shape) if own else any_value(random_))
        body = json.dumps(request).encode()
        status, answer = wire.send(wire.headers("ecs", operation, body), body)
        told = f"request {number} of seed {SEED!r}, {request}: {status} {answer[:2000]}"
        assert status in (200, 400), told
        document = json.loads(answer)
        if status == 200:
            outcomes["taken"] += 1
            continue
        outcomes["refused"] += 1
        assert document["__type"] in errors, told
        first = document["message"].splitlines()[0]
        named = any(word in bare(first) for word in words) or any(text in first for text in OTHER_WORDS)
        assert named, told
        # Where nothing else was wrong, all that is left is a subnet that is not there.
        if operation == "RunTask" and "InvalidSubnetID" in first:
            outcomes["taken"] += 1
    assert min(outcomes.values()) > REQUESTS // 50, outcomes
    assert running.is_alive(), running.tail()
    assert wire.call("ecs", "ListClusters")["clusterArns"]


@pytest.mark.parametrize(
    "operation, listed",
    [("RegisterTaskDefinition", "definition/tests/members.txt"), ("RunTask", "task/members.txt")],
)
def test_the_list_of_members_is_the_models(operation, listed):
    """The unit tests make inputs from a list of their own."""
    ours = os.path.join(os.path.dirname(__file__), "../../api/src/ecs", listed)
    with open(ours) as file:
        ours = {line.split(":")[0] for line in file}
    missing = {".".join(map(str, path)).replace(".0", "[]") for path, _ in leaves(models()[operation].input_shape)} - ours
    assert not missing, f"of {operation} these are not listed: {sorted(missing)}"
