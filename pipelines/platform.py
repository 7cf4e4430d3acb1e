"""What the pipelines ask of a cluster: the one place to change for yours.

The service account is a run's, not a task's: ``spare submit --service-account``. What is named here exists in ``k8s/``;
``make k8s-test`` compares. After a change: ``make pipelines``, or ``make pipelines IMAGE=registry/spare:tag``.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Final

from kfp import kubernetes

from spare_core.workflow.secrets import FOLDER, SECRETS

IMAGE: Final = os.environ.get("SPARE_IMAGE") or "spare:0.1.0"
"""What every task runs in: SPARE with its dependencies, nothing is installed when a task starts. Built from the
Dockerfile and pushed to your own registry."""
PULL_POLICY: Final = "IfNotPresent"
QUEUE: Final = "spare"
"""Kueue's LocalQueue, which GPU tasks wait in; a label that clusters without Kueue ignore."""
CONFIG: Final = "spare"
"""ConfigMap whose keys are these environment variables."""
CONFIG_VARIABLES: Final = (
    "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "SPARE_STORE", "SPARE_POLICY", "SPARE_SOURCES",
    "SPARE_REUSE_DAYS", "SPARE_WAIT_SECONDS", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_MAX_ATTEMPTS",
    "SPARE_CACHE_LIMIT", "HF_HOME", "SPARE_CACHE", "SPARE_CHECKPOINTS",
)  # fmt: skip
"""The last three name folders below CACHE_PATH. They are not set here, because a task's own variables would hold where
the same pipeline runs locally, too."""
CACHE_CLAIM: Final = "spare-model-cache"
"""PersistentVolumeClaim, ReadWriteMany, for base models and for checkpoints that outlive a pod."""
CACHE_PATH: Final = "/var/cache/spare"
POLICIES: Final = "spare-policies"
"""ConfigMap of policies by file name, read as ``policy=/etc/spare/policies/NAME.yaml``."""
POLICIES_PATH: Final = "/etc/spare/policies"
OURS: Final = ("app.kubernetes.io/part-of", "spare")
"""Label of all pods that are ours, which network policies find them by."""
USER: Final = 65532
"""Uid and gid of the image's user, as a number: Kubernetes can see of no name whether it is root's."""
MINUTE: Final = 60
AT_ONCE: Final = 4
"""Requests of a takedown list that are erased at the same time; each asks for what a profile says."""


@dataclass(frozen=True)
class Profile:
    """What a task that runs the model asks for."""

    cpu: str
    memory: str
    shared_memory: str
    accelerator: str = ""
    count: int = 0
    scratch: str = "20Gi"
    node_selector: dict[str, str] = field(default_factory=dict)


PROFILES: Final = {
    "gpu": Profile("4", "32Gi", "8Gi", "nvidia.com/gpu", 1, node_selector={"nvidia.com/gpu.present": "true"}),
    "cpu": Profile("4", "16Gi", "2Gi"),
}
_LIGHT: Final = Profile("1", "4Gi", "", scratch="4Gi")


def runs_the_model(task: Any, profile: Profile, minutes: int) -> Any:
    """A task on a GPU node, if the profile has one, which may be repeated when its node is lost."""
    _everywhere(task, profile, minutes)
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=profile.shared_memory)
    if profile.count:
        task.set_accelerator_type(profile.accelerator).set_accelerator_limit(profile.count)
        kubernetes.add_toleration(task, key=profile.accelerator, operator="Exists", effect="NoSchedule")
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", QUEUE)
    for label, value in profile.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    _repeated(task, 2, 60, minutes)
    task.set_caching_options(True)
    return task


def erases_one(task: Any, profile: Profile, minutes: int) -> Any:
    """A task that runs the model and has effects outside: never taken from a cache; to repeat it changes nothing."""
    return runs_the_model(task, profile, minutes).set_caching_options(False)


def talks_to_services(task: Any, minutes: int = 15) -> Any:
    """A small task with effects outside: never taken from a cache; to repeat it changes nothing."""
    _everywhere(task, _LIGHT, minutes)
    _repeated(task, 3, 20, minutes)
    task.set_caching_options(False)
    return task


def runs_once(task: Any, minutes: int = 30) -> Any:
    """A small task whose failure another try would not mend."""
    _everywhere(task, _LIGHT, minutes)
    task.set_caching_options(False)
    return task


def _repeated(task: Any, retries: int, pause: int, minutes: int) -> None:
    """Up to ``retries`` further tries, after ``pause`` seconds, twice that, and so on.

    KFP's ``backoff_max_duration`` is no longest pause: it becomes Argo's ``maxDuration``, a deadline for all tries,
    counted from the first one's start, after which there is none and a running one is killed. So it is as long as all
    tries and pauses can take. Which failures are tried again at all, k8s/README.md says.
    """
    pauses = sum(pause * 2**i for i in range(retries))
    whole = (retries + 1) * minutes * MINUTE + pauses
    task.set_retry(
        num_retries=retries, backoff_duration=f"{pause}s", backoff_factor=2.0, backoff_max_duration=f"{whole}s"
    )


def _everywhere(task: Any, profile: Profile, minutes: int) -> None:
    task.set_cpu_request(profile.cpu).set_cpu_limit(profile.cpu)
    task.set_memory_request(profile.memory).set_memory_limit(profile.memory)
    kubernetes.set_image_pull_policy(task, PULL_POLICY)
    kubernetes.set_timeout(task, minutes * MINUTE)
    kubernetes.add_pod_label(task, *OURS)
    kubernetes.use_field_path_as_env(task, "SPARE_RUN_ID", "metadata.labels['pipeline/runid']")
    kubernetes.use_config_map_as_env(task, CONFIG, {name: name for name in CONFIG_VARIABLES}, optional=True)
    for secret in SECRETS:
        kubernetes.use_secret_as_volume(task, secret, str(FOLDER / secret), optional=True)
    kubernetes.mount_pvc(task, CACHE_CLAIM, CACHE_PATH)
    kubernetes.use_config_map_as_volume(task, POLICIES, POLICIES_PATH, optional=True)
    # So that nothing is ever written to the root file system, which then may be read-only.
    kubernetes.empty_dir_mount(task, "tmp", "/tmp", size_limit=profile.scratch)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
