"""cluster.yaml against a local EC2: Ray's AWS provider accepts it, and asks for the machines that we mean."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

ROOT = Path(__file__).parents[2]
REGION = "us-west-2"

pytestmark = pytest.mark.slow  # Ray asks for all types of machines that EC2 has, which takes moto 15 s


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The configuration that `ray up` makes of cluster.yaml on an account with our two roles."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name, value in {"HOME": str(home), "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
            patch.setenv(name, value)
        for role in ("digpro-head", "digpro-worker"):
            boto3.client("iam", REGION).create_instance_profile(InstanceProfileName=role)
        yield _bootstrap_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()), no_config_cache=True)


def launch(cluster: dict[str, Any], node_type: str, kind: str) -> dict[str, Any]:
    """Have Ray start one machine of a type; returns what EC2 says about it."""
    provider = _get_node_provider(cluster["provider"], cluster["cluster_name"])
    tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type, TAG_RAY_LAUNCH_CONFIG: "any"}
    config = copy.deepcopy(cluster["available_node_types"][node_type]["node_config"])
    [machine] = provider.create_node(config, tags, 1).values()
    answer = boto3.client("ec2", REGION).describe_instances(InstanceIds=[machine.id])
    return dict(answer["Reservations"][0]["Instances"][0])


@pytest.fixture(scope="module")
def head(cluster: dict[str, Any]) -> dict[str, Any]:
    return launch(cluster, "head", "head")


@pytest.fixture(scope="module")
def worker(cluster: dict[str, Any]) -> dict[str, Any]:
    return launch(cluster, "gpu-worker", "worker")


def test_the_head_is_on_demand_and_the_worker_is_a_spot_machine(head: dict[str, Any], worker: dict[str, Any]) -> None:
    assert (head["InstanceType"], head.get("InstanceLifecycle")) == ("m6i.xlarge", None)
    assert (worker["InstanceType"], worker["InstanceLifecycle"]) == ("g5.xlarge", "spot")


def test_each_machine_has_its_role(head: dict[str, Any], worker: dict[str, Any]) -> None:
    assert head["IamInstanceProfile"]["Arn"].endswith("/digpro-head")
    assert worker["IamInstanceProfile"]["Arn"].endswith("/digpro-worker")


def test_both_have_the_image_the_key_and_the_disk_of_the_file(head: dict[str, Any], worker: dict[str, Any]) -> None:
    for machine in (head, worker):
        assert machine["ImageId"] == "ami-00000000000000000"
        assert machine["KeyName"] == f"ray-autoscaler_{REGION}"
        [disk] = machine["BlockDeviceMappings"]
        volume = boto3.client("ec2", REGION).describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"][0]
        assert (disk["DeviceName"], volume["Size"], volume["VolumeType"]) == ("/dev/sda1", 100, "gp3")


def test_the_group_admits_its_members_and_ssh_only(cluster: dict[str, Any], head: dict[str, Any]) -> None:
    [group] = head["SecurityGroups"]
    assert group["GroupName"] == "ray-autoscaler-digpro"
    answer = boto3.client("ec2", REGION).describe_security_groups(GroupIds=[group["GroupId"]])
    rules = answer["SecurityGroups"][0]["IpPermissions"]
    admitted = {(rule["IpProtocol"], rule.get("FromPort")): rule for rule in rules}
    assert set(admitted) == {("-1", None), ("tcp", 22)} or set(admitted) == {("-1", -1), ("tcp", 22)}, rules
    assert [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    assert [network["CidrIp"] for network in admitted["tcp", 22]["IpRanges"]] == ["0.0.0.0/0"]


def test_ray_knows_what_the_types_have(cluster: dict[str, Any]) -> None:
    """So that a run that asks for GPUs makes the autoscaler start workers, and never another head."""
    types = cluster["available_node_types"]
    assert types["gpu-worker"]["resources"]["GPU"] == 1
    assert types["gpu-worker"]["resources"]["CPU"] == 4
    assert "GPU" not in types["head"]["resources"]
    assert (types["head"]["max_workers"], types["gpu-worker"]["max_workers"]) == (0, 4)


def test_the_key_of_the_machines_is_kept_on_this_one(cluster: dict[str, Any]) -> None:
    key = Path(cluster["auth"]["ssh_private_key"])
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.name == f"ray-autoscaler_{REGION}.pem"
