"""What runs Headrace in production: units that systemd takes, manifests that Kubernetes takes, settings that exist."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataflows.config import settings_table
from tests.flows import ROOT

DEPLOY = ROOT / "dataflows" / "deploy"
UNITS = ("headrace.service", "headrace@.service", "headrace.target")
MANIFESTS = ("one-pod.yaml", "cluster.yaml")
KUBERNETES = ("1.28", "1.31", "1.34")
EXPOSURE_MAX = 2.5
"""Of 10, as `systemd-analyze security` counts it."""

FOREIGN = re.compile("BYTEWAX_|NUMBA_CACHE_DIR$|KAFKA_PASSWORD$")
"""Variables that are others', and the one that comes from a secret."""

BINARY = "/opt/headrace/bin/headrace"


def cannot(what: str) -> None:
    """Skip loudly; under CI fail."""
    said = f"{what} is not here: deployment files are NOT checked by it"
    if "CI" in os.environ:
        pytest.fail(said)
    pytest.skip(said)


def sections(unit: str) -> dict[str, list[tuple[str, str]]]:
    """Section → (name, value) in order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (DEPLOY / unit).read_text("utf-8").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[list(found)[-1]].append((name, value))
    return found


def documents(manifest: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / manifest).read_text("utf-8")))


def one(manifest: str, kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (found,) = (document for document in documents(manifest) if document["kind"] == kind)
    return found


def container(manifest: str) -> dict[str, Any]:
    """The container of the set."""
    (found,) = one(manifest, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit(tmp_path: Path, unit: str) -> None:
    """`systemd-analyze verify` has nothing to say, and its exposure is low."""
    if shutil.which("systemd-analyze") is None:
        cannot("systemd-analyze")
    for name in UNITS:
        text = (DEPLOY / name).read_text("utf-8").replace(BINARY, sys.executable)
        (tmp_path / name).write_text(re.sub("^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE), "utf-8")
    asked = unit.replace("@.", "@0.")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", str(tmp_path / asked)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    if unit.endswith(".service"):
        command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(DEPLOY / unit)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        score = re.search(r"Overall exposure level for \S+ ([0-9.]+)", told.stdout.replace(":", ""))
        assert score is not None, told.stdout + told.stderr
        assert float(score[1]) <= EXPOSURE_MAX


def test_units_agree() -> None:
    """A process of a cluster is run as a single one is, but for what makes it one of several."""
    alone, many = (sections(unit)["Service"] for unit in UNITS[:2])
    differ = {"Environment", "RuntimeDirectory", "RestartPreventExitStatus"}
    assert [pair for pair in alone if pair[0] not in differ] == [pair for pair in many if pair[0] not in differ]
    assert ("RestartPreventExitStatus", "2") in alone
    assert ("KillMode", "mixed") in alone


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kubernetes_takes_the_manifest(manifest: str, version: str) -> None:
    """Every object fits the schema of its kind, with no name that the schema does not know."""
    try:
        kubernetes_validate = importlib.import_module("kubernetes_validate")
    except ImportError:
        cannot("kubernetes-validate")
    for document in documents(manifest):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_settings_of_a_manifest_exist(manifest: str) -> None:
    """Every variable that a manifest sets is a setting of Headrace's or of a library's, and stands in one place."""
    known = {name for name, _, _ in settings_table()}
    named = [*one(manifest, "ConfigMap")["data"], *(variable["name"] for variable in container(manifest)["env"])]
    assert len(named) == len(set(named))
    assert {name for name in named if name not in known and not FOREIGN.match(name)} == set()


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_pod_may_do_little(manifest: str) -> None:
    """No root, no writing but to its volumes, no privileges, no token; no secret stands in the file."""
    pod = one(manifest, "StatefulSet")["spec"]["template"]["spec"]
    only = container(manifest)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert only["securityContext"]["readOnlyRootFilesystem"]
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert only["securityContext"]["allowPrivilegeEscalation"] is False
    assert "memory" in only["resources"]["limits"]
    assert "KAFKA_PASSWORD" not in one(manifest, "ConfigMap")["data"]
    mounts = {mount["mountPath"] for mount in only["volumeMounts"]}
    folders = ("RECOVERY_DIR", "OFFLINE_DATA_PATH", "BUS_DIR")
    assert all(one(manifest, "ConfigMap")["data"][name].startswith("/data/") for name in folders)
    assert {"/data", "/tmp"} <= mounts  # noqa: S108  # a volume of the pod's own
    assert {probe["httpGet"]["path"] for name, probe in only.items() if name.endswith("Probe")} == {"/metrics"}


def test_a_set_lives_and_dies_together() -> None:
    """All pods start at once, none is replaced alone, each knows all addresses and its own number."""
    workload = one("cluster.yaml", "StatefulSet")
    addresses = one("cluster.yaml", "ConfigMap")["data"]["BYTEWAX_ADDRESSES"].split(";")
    service = next(s for s in documents("cluster.yaml") if s["kind"] == "Service")
    assert workload["spec"]["podManagementPolicy"] == "Parallel"
    assert workload["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert service["spec"]["publishNotReadyAddresses"]
    assert [address.split(".")[0] for address in addresses] == [
        f"{workload['metadata']['name']}-{number}" for number in range(workload["spec"]["replicas"])
    ]
    assert {address.split(".")[1] for address in addresses} == {f"{service['metadata']['name']}:2101"}
    assert 2101 in {port["port"] for port in service["spec"]["ports"]}
    assert any(variable["name"] == "BYTEWAX_PROCESS_ID" for variable in container("cluster.yaml")["env"])


def _differences() -> Iterator[str]:
    alone, many = (container(manifest) for manifest in MANIFESTS)
    return (name for name in alone if alone[name] != many[name])


def test_manifests_agree() -> None:
    """A pod of the cluster is the single pod, but for its number and the port of the cluster."""
    assert set(_differences()) == {"env", "ports"}
