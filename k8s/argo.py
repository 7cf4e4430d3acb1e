"""The nightly batch as an Argo CronWorkflow, for clusters that have Argo and no KFP: ``python -m k8s.argo``.

One pod with one GPU runs ``spare takedown run``, that is the same compiled pipeline through KFP's local runner, one
request after the other. Its folder lies on the volume of the model cache, so a night goes on where the last one ended.
Exit 1, a request that failed or is late, is a workflow that failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from hera.workflows import ConfigMapEnvFrom, Container, CronWorkflow, SecretEnv
from hera.workflows import models as m

from pipelines.platform import (
    CACHE_CLAIM,
    CACHE_PATH,
    CONFIG,
    IMAGE,
    MINUTE,
    OURS,
    POLICIES,
    POLICIES_PATH,
    PROFILES,
    PULL_POLICY,
    QUEUE,
    USER,
    Profile,
)
from spare_core.workflow.secrets import SECRETS

OUTPUT: Final = Path(__file__).parent / "components" / "argo" / "takedown.yaml"
_HOURS: Final = 22


def cron_workflow(profile: Profile) -> CronWorkflow:
    """The workflow, with what ``profile`` says for the pod."""
    batch = Container(
        name="batch",
        image=IMAGE,
        image_pull_policy=PULL_POLICY,
        command=["spare", "takedown", "run"],
        args=[
            "$(LISTS)",
            "model=$(MODEL)",
            "suite=$(SUITE)",
            "name=$(NAME)",
            "skip_invalid=true",
            f"--output={CACHE_PATH}/takedowns",
        ],
        env_from=[ConfigMapEnvFrom(name=CONFIG, prefix=None), ConfigMapEnvFrom(name="spare-takedown", prefix=None)],
        # Its command holds nothing but names of this environment: nobody's words, which Kubernetes could expand.
        env=[
            SecretEnv(name=variable, secret_name=secret, secret_key=key, optional=True)
            for secret, variables in SECRETS.items()
            for key, variable in variables.items()
        ],
        resources=m.ResourceRequirements(requests=_resources(profile), limits=_resources(profile)),
        security_context=m.SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=m.Capabilities(drop=["ALL"]),
        ),
        volume_mounts=[
            m.VolumeMount(name="tmp", mount_path="/tmp"),
            m.VolumeMount(name="shared-memory", mount_path="/dev/shm"),
            m.VolumeMount(name="cache", mount_path=CACHE_PATH),
            m.VolumeMount(name="policies", mount_path=POLICIES_PATH, read_only=True),
        ],
        node_selector=profile.node_selector or None,
        tolerations=[m.Toleration(key=profile.accelerator, operator="Exists", effect="NoSchedule")]
        if profile.count
        else None,
        labels={
            **dict([OURS]),
            "app.kubernetes.io/name": "batch",
            "spare/tls": "true",
            "spare/registry": "true",
            **({"kueue.x-k8s.io/queue-name": QUEUE} if profile.count else {}),
        },
    )
    return CronWorkflow(
        name="spare-takedown",
        schedules=["0 2 * * *"],
        timezone="Etc/UTC",
        concurrency_policy="Forbid",
        starting_deadline_seconds=60 * MINUTE,
        successful_jobs_history_limit=7,
        failed_jobs_history_limit=7,
        entrypoint="batch",
        service_account_name="spare-takedown",
        active_deadline_seconds=_HOURS * 60 * MINUTE,
        security_context=m.PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            run_as_group=USER,
            fs_group=USER,
            seccomp_profile=m.SeccompProfile(type="RuntimeDefault"),
        ),
        templates=[batch],
        volumes=[
            m.Volume(name="tmp", empty_dir=m.EmptyDirVolumeSource(size_limit=m.Quantity(root=profile.scratch))),
            m.Volume(
                name="shared-memory",
                empty_dir=m.EmptyDirVolumeSource(medium="Memory", size_limit=m.Quantity(root=profile.shared_memory)),
            ),
            m.Volume(name="cache", persistent_volume_claim=m.PersistentVolumeClaimVolumeSource(claim_name=CACHE_CLAIM)),
            m.Volume(name="policies", config_map=m.ConfigMapVolumeSource(name=POLICIES)),
        ],
    )


def _resources(profile: Profile) -> dict[str, m.Quantity]:
    wanted = {"cpu": profile.cpu, "memory": profile.memory}
    if profile.count:
        wanted[profile.accelerator] = str(profile.count)
    return {name: m.Quantity(root=amount) for name, amount in wanted.items()}


def main() -> None:
    """Write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="gpu", help="what the pod asks for")
    given = parser.parse_args()
    OUTPUT.write_text(cron_workflow(PROFILES[given.profile]).to_yaml(), encoding="utf-8")


if __name__ == "__main__":
    main()
