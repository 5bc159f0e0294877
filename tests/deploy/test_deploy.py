"""The deployment files match the schemas of the tools that read them, and the project that they deploy; offline."""

from __future__ import annotations

import copy
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.config.loading import load_config
from pipeline.submission import JOB_VARIABLES

ROOT = Path(__file__).parents[2]
LAUNCH_FILES = ["cluster.yaml", "deploy/onpremise.yaml"]
MANIFESTS = ["deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml"]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
SCHEMA = yaml.safe_load((ROOT / "tests/deploy/kuberay_fields.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def check_launch_file(config: dict[str, Any]) -> None:
    """Validate a launch file as `ray up` does before it contacts a cloud."""
    validate_config(prepare_config(copy.deepcopy(config)))


def check_manifest(manifest: dict[str, Any]) -> None:
    Draft202012Validator(SCHEMA).validate(manifest)


def without_comments(path: str) -> str:
    """The text of a file without its comments."""
    return re.sub(r"(^|\s)#.*", "", (ROOT / path).read_text())


def commands(config: dict[str, Any]) -> list[str]:
    kinds = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return [command for kind in kinds for command in config[kind]]


def cluster_spec(path: str) -> dict[str, Any]:
    spec = load(path)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(path: str) -> Iterator[dict[str, Any]]:
    """The pod specs of a manifest: head, workers and submitter."""
    spec = cluster_spec(path)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    submitter = load(path)["spec"].get("submitterPodTemplate")
    yield from (template["spec"] for template in [*(group["template"] for group in groups), submitter] if template)


def ray_pods(path: str) -> list[dict[str, Any]]:
    return [pod for pod in pods(path) if pod["containers"][0]["name"] in ("ray-head", "ray-worker")]


def gibibytes(size: str) -> int:
    return int(size.removesuffix("Gi"))


# What Ray and KubeRay accept


@pytest.mark.parametrize("path", LAUNCH_FILES)
def test_ray_accepts_the_launch_file(path: str) -> None:
    check_launch_file(load(path))


@pytest.mark.parametrize("path", LAUNCH_FILES)
@pytest.mark.parametrize("mistake", [{"worker_count": 4}, {"idle_timeout_minutes": "ten"}])
def test_ray_rejects_a_wrong_launch_file(path: str, mistake: dict[str, Any]) -> None:
    with pytest.raises((ValueError, ValidationError)):
        check_launch_file(load(path) | mistake)


def test_ray_rejects_a_head_of_an_unknown_type() -> None:
    with pytest.raises(ValueError, match="head_node_type"):
        check_launch_file(load("cluster.yaml") | {"head_node_type": "none"})


def test_ray_rejects_machines_without_a_head() -> None:
    config = load("deploy/onpremise.yaml")
    del config["provider"]["head_ip"]
    with pytest.raises(click.ClickException):
        check_launch_file(config)


@pytest.mark.parametrize("path", MANIFESTS)
def test_kuberay_knows_all_fields(path: str) -> None:
    check_manifest(load(path))


def remove_head(spec: dict[str, Any]) -> None:
    del spec["headGroupSpec"]


def remove_pod_template(spec: dict[str, Any]) -> None:
    del spec["workerGroupSpecs"][0]["template"]


def misspell_a_field(spec: dict[str, Any]) -> None:
    spec["enableInTreeAutoScaling"] = spec.pop("enableInTreeAutoscaling")


def give_a_number_for_a_string(spec: dict[str, Any]) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 2


@pytest.mark.parametrize("path", MANIFESTS)
@pytest.mark.parametrize("spoil", [remove_head, remove_pod_template, misspell_a_field, give_a_number_for_a_string])
def test_a_wrong_cluster_is_rejected(path: str, spoil: Any) -> None:
    manifest = load(path)
    spoil(manifest["spec"].get("rayClusterSpec", manifest["spec"]))
    with pytest.raises(ValidationError):
        check_manifest(manifest)


@pytest.mark.parametrize("field", ["entrypoint", "rayClusterSpec"])
def test_a_job_without_entrypoint_or_cluster_is_rejected(field: str) -> None:
    manifest = load(MANIFESTS[1])
    del manifest["spec"][field]
    with pytest.raises(ValidationError):
        check_manifest(manifest)


# One project, one version


@pytest.mark.parametrize("path", MANIFESTS)
def test_versions_are_those_of_the_project(path: str) -> None:
    assert cluster_spec(path)["rayVersion"] == PINS["ray"]
    images = {container["image"] for pod in pods(path) for container in pod["containers"]}
    assert images == {f"registry.example.com/digpro:{PROJECT['version']}"}
    assert f"docker build -f deploy/Dockerfile -t {images.pop()} ." in DOCKERFILE


def test_python_is_the_tested_version() -> None:
    tested = re.search(r"Python (3\.\d+)", (ROOT / "constraints.txt").read_text())
    assert tested
    assert f"FROM python:{tested[1]}-slim" in DOCKERFILE
    for path in LAUNCH_FILES:
        assert f"uv venv --python {tested[1]} ~/venv" in without_comments(path)


def test_the_two_manifests_describe_the_same_cluster() -> None:
    specs = [cluster_spec(path) for path in MANIFESTS]
    for spec in specs:
        del spec["headGroupSpec"]["rayStartParams"]["dashboard-host"]
        for pod in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            container = pod["template"]["spec"]["containers"][0]
            container["env"] = [variable for variable in container["env"] if variable["name"] != "POD_IP"]
    assert specs[0] == specs[1]


@pytest.mark.parametrize("path", LAUNCH_FILES)
def test_nodes_install_the_project_from_existing_files(path: str) -> None:
    text = "\n".join(commands(load(path)))
    assert re.search(r'pip install .*-c constraints\.txt -e "\.\[\$DIGPRO_EXTRAS\]"$', text, re.MULTILINE)
    [extras] = re.findall(r"DIGPRO_EXTRAS=([\w,]+)", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    named = {"constraints.txt", *re.findall(r"~/digpro/([\w./-]+)", text)}
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", LAUNCH_FILES)
def test_ray_is_not_started_with_the_one_thread_of_ray_up(path: str) -> None:
    starts = [command for command in commands(load(path)) if "ray start" in command]
    assert all(command.startswith("unset OMP_NUM_THREADS; ") for command in starts)


def test_the_head_counts_all_machines_of_the_file() -> None:
    """Version 2 of the autoscaler starts one worker too few with `type: local` (tests/chaos/test_ray_up.py)."""
    [start] = [command for command in commands(load("deploy/onpremise.yaml")) if "ray start --head" in command]
    assert "RAY_enable_autoscaler_v2=0 " in start


def test_spot_machines_watch_for_their_end() -> None:
    config = load("cluster.yaml")
    [watch] = [command for command in config["worker_start_ray_commands"] if "spot_notice.sh" in command]
    assert watch.endswith("&")
    assert (ROOT / "deploy/spot_notice.sh").is_file()
    assert not any("spot_notice.sh" in command for command in config["head_start_ray_commands"])


def test_the_extras_of_the_image_are_one_setting() -> None:
    [extras] = re.findall(r"^ARG EXTRAS=([\w,]+)$", DOCKERFILE, re.MULTILINE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert 'pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"' in DOCKERFILE


def test_the_image_contains_what_it_runs() -> None:
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    allowed = {line[1:] for line in without_comments(".dockerignore").split() if line.startswith("!")}
    assert copied == allowed
    script = load(MANIFESTS[1])["spec"]["entrypoint"].split()[1]
    assert script.startswith("/app/jobs/")
    assert "WORKDIR /app\n" in DOCKERFILE
    assert (ROOT / script.removeprefix("/app/")).is_file()


def test_the_job_uses_existing_settings() -> None:
    words = shlex.split(load(MANIFESTS[1])["spec"]["entrypoint"])
    options = list(zip(words[2::2], words[3::2], strict=True))
    assert {option for option, _ in options} == {"--preset", "--set"}
    config = load_config(dict(options)["--preset"], [value for option, value in options if option == "--set"])
    assert config.resources.gpus is True
    assert config.tracking.uri is not None
    assert config.storage.startswith("s3://")
    assert config.data.path.startswith("s3://")


def test_the_page_submits_existing_settings() -> None:
    """Every `digpro submit train` of the page, that on 32 GPUs among them."""
    text = (ROOT / "docs/deploy.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"digpro submit (train --.*)", text)]
    assert len(commands) >= 3
    for words in commands:
        values = [value for option, value in itertools.pairwise(words) if option == "--set"]
        config = load_config(words[words.index("--preset") + 1], values)
        assert config.resources.gpus is True


@pytest.mark.parametrize("path", LAUNCH_FILES)
def test_sources_are_copied_to_the_nodes_without_data_and_runs(path: str) -> None:
    config = load(path)
    assert config["file_mounts"][f"/home/{config['auth']['ssh_user']}/digpro"] == "."
    assert {".git", "/.venv", "/runs", "/data"} <= set(config["rsync_exclude"])
    assert not {".venv", "runs", "data"} & set(config["rsync_exclude"]), "would exclude pipeline/data too"


# Addresses, tokens and privileges


@pytest.mark.parametrize("path", [*LAUNCH_FILES, *MANIFESTS, "deploy/Dockerfile", "deploy/mlflow.sh"])
def test_nothing_is_configured_to_listen_on_every_interface(path: str) -> None:
    assert not re.search(r"0\.0\.0\.0|\[::\]|host[= ]\*", without_comments(path))


@pytest.mark.parametrize("path", LAUNCH_FILES)
def test_the_dashboard_listens_on_loopback(path: str) -> None:
    [start] = [command for command in commands(load(path)) if "ray start --head" in command]
    assert "--dashboard-host=127.0.0.1 " in start


def test_the_dashboard_of_a_pod_has_an_explicit_address() -> None:
    """Without one, KubeRay uses every interface."""
    hosts = [cluster_spec(path)["headGroupSpec"]["rayStartParams"]["dashboard-host"] for path in MANIFESTS]
    assert hosts == ["127.0.0.1", "$POD_IP"]
    head = ray_pods(MANIFESTS[1])[0]["containers"][0]
    assert {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}} in head["env"]


@pytest.mark.parametrize("path", LAUNCH_FILES)
def test_mlflow_listens_on_the_private_address_of_the_head(path: str) -> None:
    config = load(path)
    address = config["provider"].get("head_ip", "$(hostname -I | cut -d' ' -f1)")
    setup = "\n".join(config["head_setup_commands"])
    assert f"HEAD_IP={address}" in setup
    assert re.search(rf"MLFLOW_TRACKING_URI=http://({re.escape(address)}|\$HEAD_IP):5000", setup)
    [start] = [command for command in config["head_start_ray_commands"] if "mlflow.sh" in command]
    assert "mlflow.sh $HEAD_IP " in start
    assert '--host "$1" --port 5000' in without_comments("deploy/mlflow.sh")


@pytest.mark.parametrize("path", LAUNCH_FILES)
def test_every_node_is_started_with_the_token(path: str) -> None:
    config = load(path)
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    assert all(re.search(r"RAY_AUTH_MODE=token [^;]*ray start", command) for command in starts)
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", MANIFESTS)
def test_every_pod_has_the_token_from_the_secret(path: str) -> None:
    auth = cluster_spec(path)["authOptions"]
    assert auth == {"mode": "token", "secretName": "digpro-auth"}
    key = {"secretKeyRef": {"name": auth["secretName"], "key": "auth_token"}}
    for pod in ray_pods(path):
        variables = {variable["name"]: variable for variable in pod["containers"][0]["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert variables["RAY_AUTH_TOKEN"]["valueFrom"] == key


@pytest.mark.parametrize("path", MANIFESTS)
def test_pods_are_not_root(path: str) -> None:
    assert re.search(r"^USER 1000$", DOCKERFILE, re.MULTILINE)
    locked = [cluster_spec(path)["autoscalerOptions"]["securityContext"]]
    for pod in pods(path):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        locked += [container["securityContext"] for container in pod["containers"]]
    assert all(context["allowPrivilegeEscalation"] is False for context in locked)
    assert all(context["capabilities"] == {"drop": ["ALL"]} for context in locked)


# Costs and resources


def test_the_head_is_on_demand_and_workers_are_spot() -> None:
    config = load("cluster.yaml")
    head = config["available_node_types"].pop(config["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["max_workers"] == 0
    for worker in config["available_node_types"].values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert (worker["min_workers"], worker["max_workers"]) == (0, config["max_workers"])


@pytest.mark.parametrize("path", MANIFESTS)
def test_gpu_pods_scale_from_zero(path: str) -> None:
    spec = cluster_spec(path)
    assert spec["enableInTreeAutoscaling"] is True
    [workers] = spec["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("path", MANIFESTS)
def test_limits_of_pods_equal_their_requests(path: str) -> None:
    for pod in pods(path):
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("path", MANIFESTS)
def test_shared_memory_holds_the_object_store(path: str) -> None:
    for pod in ray_pods(path):
        [volume], [container] = pod["volumes"], pod["containers"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        assert volume["emptyDir"]["medium"] == "Memory"
        store = 0.3 * gibibytes(container["resources"]["limits"]["memory"])
        assert gibibytes(volume["emptyDir"]["sizeLimit"]) >= store


@pytest.mark.parametrize("path", MANIFESTS)
def test_the_pod_of_eight_gpus_on_the_page_fits_the_manifests(path: str) -> None:
    (snippet,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL)
    manifest, asked = load(path), yaml.safe_load(snippet)
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    pod = spec["workerGroupSpecs"][0]["template"]["spec"]
    [volume], [container] = pod["volumes"], pod["containers"]
    assert volume["name"] == "shared-memory"
    container["resources"], volume["emptyDir"] = asked["resources"], asked["emptyDir"]
    check_manifest(manifest)
    assert asked["resources"]["limits"] == asked["resources"]["requests"]
    assert asked["resources"]["limits"]["nvidia.com/gpu"] == "8"
    store = min(0.3 * gibibytes(asked["resources"]["limits"]["memory"]), 200)
    assert gibibytes(asked["emptyDir"]["sizeLimit"]) >= store


def test_a_job_that_is_stopped_has_a_minute_whoever_submitted_it() -> None:
    """Ray's supervisor of a job reads the variable as its node was started; `digpro submit` sets it for its own."""
    said = f"RAY_JOB_STOP_WAIT_TIME_S={JOB_VARIABLES['RAY_JOB_STOP_WAIT_TIME_S']}"
    assert all(said in load(path)["setup_commands"][0] for path in LAUNCH_FILES)
    assert said in DOCKERFILE
