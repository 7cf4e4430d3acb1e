"""What a cluster would be given is restricted, and has what the pipelines name: ``make k8s-test``."""

import json
import re

import pytest
import yaml
from hera.workflows import CronWorkflow
from pydantic import ValidationError

from k8s.argo import cron_workflow
from k8s.conftest import HERE, ROOT, containers, executors, images, named, pods, render
from pipelines import platform
from spare_core.evaluation.gate import DEFAULT, POLICIES
from spare_core.registry.naming import check_name
from spare_core.workflow.secrets import FOLDER, SECRETS

BY_HAND = {"Job spare-promote"}
"""What k8s/examples holds."""


# --- Security


def test_no_secret_has_a_value_here(objects):
    assert not named(objects, "Secret")
    values = [str(item.get("data", "")) for item in objects if item["kind"] == "ConfigMap"]
    assert not re.search("AKIA[0-9A-Z]{16}|://[^/ ]+:[^/ ]+@", " ".join(values))


def test_every_pod_is_as_restricted_as_the_namespace_asks_and_cannot_write_to_its_root(objects):
    labels = named(objects, "Namespace")["spare"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    seen = list(containers(objects))
    assert len(seen) == 6
    for owner, pod, container in seen:
        security, own = pod["securityContext"], container["securityContext"]
        assert security["runAsNonRoot"] is True, owner
        assert security["runAsUser"] == security["runAsGroup"] == platform.USER, owner
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert own["allowPrivilegeEscalation"] is False, owner
        assert own["readOnlyRootFilesystem"] is True, owner
        assert own["capabilities"] == {"drop": ["ALL"]}, owner
        # Argo's executor reports to the API server.
        assert pod.get("automountServiceAccountToken", True) is (owner == "CronWorkflow"), owner
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), owner
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), owner
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written <= {"/tmp", "/dev/shm", platform.CACHE_PATH}, owner


def test_the_pipelines_tasks_are_as_restricted_as_kfp_lets_them(compiled):
    for executor in executors(compiled):
        assert executor["securityContext"] == {
            "runAsUser": str(platform.USER), "runAsGroup": str(platform.USER), "runAsNonRoot": True
        }  # fmt: skip
        assert "/tmp" in {mount["mountPath"] for mount in executor["emptyDirMounts"]}


LINK_LOCAL = {"169.254.20.10/32", "169.254.170.23/32"}
"""NodeLocal DNSCache and EKS Pod Identity's agent: all that a pod may reach of what a node keeps for itself."""
FOREIGN = (
    {}, {"app": "mysql"}, {"app": "ml-pipeline"}, {"app": "seaweedfs"}, {"app": "workflow-controller"},
    {"app.kubernetes.io/name": "mlflow", "app.kubernetes.io/part-of": "somebody-elses"},
    {"pipeline/runid": "somebody-elses", "pipelines.kubeflow.org/v2_component": "true"},
)  # fmt: skip
"""Labels of pods that are not SPARE's, in a namespace that is shared: KFP's own, and other people's runs."""


def selects(selector, labels):
    """Whether a label selector means a pod with ``labels``, by Kubernetes' rules."""
    operators = {
        "Exists": lambda value, _: value is not None,
        "DoesNotExist": lambda value, _: value is None,
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[one["operator"]](labels.get(one["key"]), one.get("values"))
        for one in selector.get("matchExpressions", [])
    )


def test_nothing_is_reached_but_what_a_policy_names(objects):
    policies = named(objects, "NetworkPolicy")
    for name in ("spare-nothing", "everybody"):
        assert policies[name]["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in policies[name]["spec"]
    assert policies["everybody"]["spec"]["podSelector"] == {}, "the namespace is SPARE's own"
    for name, policy in policies.items():
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], name
            assert rule["ports"], name
        for rule in policy["spec"].get("egress", []):
            assert rule["ports"], name
            for peer in rule.get("to", []):
                block = peer.get("ipBlock", {})
                assert not block or block["cidr"] in LINK_LOCAL or "169.254.0.0/16" in block["except"], name


def test_every_pod_of_ours_has_the_label_that_policies_find_it_by(objects, compiled):
    nothing = named(objects, "NetworkPolicy")["spare-nothing"]["spec"]["podSelector"]
    for owner, _, labels in pods(objects):
        assert selects(nothing, labels), owner
    for executor in executors(compiled):
        assert selects(nothing, executor["podMetadata"]["labels"])


def test_in_a_namespace_that_is_shared_nobody_elses_pod_is_meant():
    """One-user KFP's own traffic would be cut off by a selector of all pods, and MLflow open to everybody's runs."""
    objects = list(yaml.safe_load_all(render("one-user")))
    assert not named(objects, "Namespace")
    assert {item["metadata"]["namespace"] for item in objects} == {"kubeflow", "spare"}, "and what is made by hand"
    policies = named(objects, "NetworkPolicy")
    assert "spare-nothing" in policies
    for name, policy in policies.items():
        for labels in FOREIGN:
            assert not selects(policy["spec"]["podSelector"], labels), (name, labels)
        for rule in policy["spec"].get("ingress", []):
            for peer in rule["from"]:
                if "namespaceSelector" not in peer:
                    assert not any(selects(peer["podSelector"], labels) for labels in FOREIGN), name
    (arguments,) = (
        container["args"] for _, _, container in containers(objects) if "skip_invalid=true" in container["args"]
    )
    assert not any(argument.startswith("--namespace") for argument in arguments)


def test_a_namespace_of_our_own_is_one_that_kfps_controllers_serve(objects):
    """Argo mounts the Secret that the profile controller makes into every pod, and puts logs into KFP's object store:
    in any other namespace no pod of a run would start."""
    facts = ROOT.parent / "shared" / "platform" / "kfp-manifests"
    if not facts.is_dir():
        pytest.skip("KFP's own manifests are not here")
    labels = named(objects, "Namespace")["spare"]["metadata"]["labels"]
    (controller,) = yaml.safe_load_all((facts / "decorator-controller.yaml").read_text())
    assert selects(controller["spec"]["resources"][0]["labelSelector"], labels)
    (store,) = yaml.safe_load_all((facts / "seaweedfs-networkpolicy.yaml").read_text())
    let_in = [
        {port["port"] for port in rule["ports"]}
        for rule in store["spec"]["ingress"] for peer in rule["from"]
        if "namespaceSelector" in peer and selects(peer["namespaceSelector"], labels)
    ]  # fmt: skip
    assert let_in == [{8333}]
    (service,) = yaml.safe_load_all((facts / "seaweedfs-service.yaml").read_text())
    (patch,) = yaml.safe_load_all((facts / "workflow-controller-configmap-patch.yaml").read_text())
    logs = yaml.safe_load(patch["data"]["artifactRepository"])
    assert logs["archiveLogs"] is True
    port = int(logs["s3"]["endpoint"].rpartition(":")[2])
    (behind,) = (one["targetPort"] for one in service["spec"]["ports"] if one["port"] == port)
    for name in ("spare-runs", "drivers"):
        reached = {
            one["port"] for rule in named(objects, "NetworkPolicy")[name]["spec"]["egress"] for one in rule["ports"]
        }
        assert {port, behind} <= reached, name


def test_roles_name_what_they_are_for(objects):
    for role in named(objects, "Role").values():
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            if {"secrets", "configmaps"} & set(rule["resources"]):
                assert rule["resourceNames"]
    assert not named(objects, "ClusterRole")
    bound = [subject for binding in named(objects, "RoleBinding").values() for subject in binding["subjects"]]
    accounts = {subject["name"] for subject in bound if subject["kind"] == "ServiceAccount"}
    assert accounts <= named(objects, "ServiceAccount").keys()
    assert {one["name"] for one in bound if one["kind"] == "Group"} <= {"spare-promoters", "spare-operators"}


# --- What the pipelines name, and what is there


def test_the_image_is_the_one_that_the_pipelines_were_compiled_for(objects, compiled):
    own = {container["image"] for owner, _, container in containers(objects) if owner not in BY_HAND}
    assert len(own) == 1
    assert own == images(compiled), (
        "name in images: of k8s/base/kustomization.yaml what you gave to make pipelines IMAGE=…"
    )


def test_every_configuration_that_a_task_reads_is_there_and_read(objects, compiled):
    maps = named(objects, "ConfigMap")
    read = {
        (source["configMapName"], pair["configMapKey"])
        for executor in executors(compiled)
        for source in executor["configMapAsEnv"]
        for pair in source["keyToEnv"]
    }
    there = {(name, key) for name in {name for name, _ in read} for key in maps[name]["data"]}
    assert read == there
    mounted = {source["configMapName"] for executor in executors(compiled) for source in executor["configMapAsVolume"]}
    assert mounted == {platform.POLICIES}
    assert mounted <= maps.keys()


def test_no_run_takes_a_stage_that_may_be_deleted_before_it_ends(objects, compiled):
    """KFP's cache knows nothing of what the bucket's rule deletes, and the last stage still reads the first one's."""
    (rule,) = json.loads((HERE / "aws" / "work-lifecycle.json").read_text())["Rules"]
    reused = int(named(objects, "ConfigMap")["spare"]["data"]["SPARE_REUSE_DAYS"])
    for name, (specification, platforms) in compiled.items():
        stages = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
        tries = 1 + max(map(int, re.findall(r"'maxRetryCount': (\d+)", str(specification))))
        longest = tries * sum(int(stage["activeDeadlineSeconds"]) for stage in stages) / 86_400
        if name != "takedown":  # its stages are read within a task
            assert reused + longest < rule["Expiration"]["Days"], name


def test_every_configuration_map_that_a_pod_names_is_there_and_every_one_is_named(objects, compiled):
    wanted = {platform.CONFIG, platform.POLICIES}
    if not named(objects, "CronWorkflow"):
        wanted.add("kfp-launcher")
    for _, pod, container in containers(objects):
        wanted |= {
            source["configMapRef"]["name"] for source in container.get("envFrom", []) if "configMapRef" in source
        }
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
                assert reference["key"] in named(objects, "ConfigMap")[reference["name"]]["data"]
                wanted.add(reference["name"])
        wanted |= {volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume}
    assert wanted == named(objects, "ConfigMap").keys()


def test_every_secret_that_something_reads_comes_from_the_store_and_none_for_nothing(prod, compiled):
    for executor in executors(compiled):
        assert "secretAsEnv" not in executor, "Kubernetes would expand it in what people wrote"
        mounted = {source["secretName"]: source["mountPath"] for source in executor["secretAsVolume"]}
        assert mounted == {secret: str(FOLDER / secret) for secret in SECRETS}
        assert all(source["optional"] for source in executor["secretAsVolume"])
    read = {(secret, key) for secret, variables in SECRETS.items() for key in variables}
    for _, pod, container in containers(prod):
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                read.add((reference["name"], reference["key"]))
        for volume in pod.get("volumes", []):
            for item in volume.get("secret", {}).get("items", []):
                read.add((volume["secret"]["secretName"], item["key"]))
    launcher = yaml.safe_load(named(prod, "ConfigMap")["kfp-launcher"]["data"]["providers"])
    own = launcher["s3"]["default"]["credentials"]["secretRef"]
    assert {(own["secretName"], own["accessKeyKey"]), (own["secretName"], own["secretKeyKey"])} <= read
    given = {
        (secret["spec"]["target"]["name"], entry["secretKey"])
        for secret in named(prod, "ExternalSecret").values()
        for entry in secret["spec"]["data"]
    }
    assert given == read
    told = (HERE / "README.md").read_text().replace("\\\n", " ")
    by_hand = {
        (command.split()[0], key)
        for command in re.findall(r"create secret generic (.*)", told)
        for key in re.findall(r"--from-(?:literal|file)=([\w.]+)", command)
    }
    assert by_hand == read


def test_admission_knows_which_accounts_are_of_runs_and_covers_all(prod):
    policy = named(prod, "ValidatingAdmissionPolicy")["spare-pods"]["spec"]
    (of_runs,) = (one["expression"] for one in policy["variables"] if one["name"] == "ofRuns")
    (binding,) = (one for name, one in named(prod, "RoleBinding").items() if name == "spare-run")
    assert set(re.findall(r"'(.+?)'", of_runs)) == {subject["name"] for subject in binding["subjects"]}
    assert all(name.startswith("spare-") for name in named(prod, "ServiceAccount"))
    for name, binding in named(prod, "ValidatingAdmissionPolicyBinding").items():
        assert binding["spec"]["policyName"] == name
        (namespace,) = binding["spec"]["matchResources"]["namespaceSelector"]["matchLabels"].values()
        assert namespace in named(prod, "Namespace")
    usable = {
        account
        for role in named(prod, "Role").values()
        for rule in role["rules"]
        if rule["verbs"] == ["use"]
        for account in rule["resourceNames"]
    }
    started_by_hand = {pod["serviceAccountName"] for owner, pod, _ in pods(prod) if owner in BY_HAND}
    assert usable == {*started_by_hand, "spare-schedule"}


def test_on_eks_an_account_has_a_role_and_no_key():
    eks = list(yaml.safe_load_all(render("eks")))
    roles = {
        name: account["metadata"]["annotations"].get("eks.amazonaws.com/role-arn", "").rpartition("/")[2]
        for name, account in named(eks, "ServiceAccount").items()
    }
    with_rights = {f"spare-{path.stem}" for path in (HERE / "aws" / "iam").glob("*.json")}
    assert roles == {name: name if name in with_rights else "" for name in roles}
    assert not [name for name in named(eks, "ExternalSecret") if "s3" in name]
    assert "secretRef" not in named(eks, "ConfigMap")["kfp-launcher"]["data"]["providers"]


def test_no_duty_has_the_keys_of_another(objects):
    """Who breaks into one pod has that pod's rights: each Secret is read by the pods of one account."""
    readers = {}
    for _, pod, container in containers(objects):
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                readers.setdefault(reference["name"], set()).add(pod["serviceAccountName"])
    runs = set(SECRETS)  # of tasks, and of Argo's one pod for them
    assert {name: accounts for name, accounts in readers.items() if len(accounts) > 1} == {}
    assert all(accounts == {"spare-takedown"} for name, accounts in readers.items() if name in runs)


def test_the_image_server_follows_the_bundle_that_the_batch_makes(objects):
    maps = named(objects, "ConfigMap")
    batch, server = maps["spare-takedown"]["data"], maps["spare-images"]["data"]
    assert check_name(batch["NAME"]) == server["NAME"]
    assert batch["MODEL"] == server["BASE"]


def test_a_batch_takes_every_argument_that_it_is_given(objects, compiled):
    parameters = compiled["takedown"][0]["root"]["inputDefinitions"]["parameters"]
    (given,) = (
        container["args"]
        for _, _, container in containers(objects)
        if any("skip_invalid" in a for a in container["args"])
    )
    named_ = {word.partition("=")[0] for word in given if "=" in word and not word.startswith("--")}
    assert {"model", "suite", "name", "skip_invalid"} <= named_ <= parameters.keys()


def test_argos_workflow_is_what_it_is_made_of_and_one_that_its_models_take(compiled):
    committed = (HERE / "components" / "argo" / "takedown.yaml").read_text()
    (image,) = images(compiled)
    made = [cron_workflow(profile).to_yaml() for profile in platform.PROFILES.values()]
    assert committed in [one.replace(f"image: {platform.IMAGE}\n", f"image: {image}\n") for one in made]
    assert CronWorkflow.from_yaml(committed).to_yaml() == committed
    misspelt = committed.replace("concurrencyPolicy", "concurencyPolicy")  # which its models would leave out
    assert CronWorkflow.from_yaml(misspelt).to_yaml() != misspelt
    with pytest.raises(ValidationError):
        CronWorkflow.from_yaml(committed.replace("activeDeadlineSeconds: 79200", "activeDeadlineSeconds: a night"))
    (document,) = yaml.safe_load_all(committed)
    (template,) = document["spec"]["workflowSpec"]["templates"]
    assert document["spec"]["workflowSpec"]["serviceAccountName"] == "spare-takedown"
    # The same environment as a task of the pipeline has.
    secrets = {
        (variable["name"], *(variable["valueFrom"]["secretKeyRef"][name] for name in ("name", "key")))
        for variable in template["container"]["env"]
    }
    assert secrets == {(variable, secret, key) for secret, pairs in SECRETS.items() for key, variable in pairs.items()}


def test_every_claim_and_queue_is_there_and_used(prod, compiled):
    claims = {mount["constant"] for executor in executors(compiled) for mount in executor["pvcMount"]}
    assert claims == named(prod, "PersistentVolumeClaim").keys()
    for executor in executors(compiled):
        assert [mount["mountPath"] for mount in executor["pvcMount"]] == [platform.CACHE_PATH]
    labels = [executor.get("podMetadata", {}).get("labels", {}) for executor in executors(compiled)]
    key = "kueue.x-k8s.io/queue-name"
    queues = {label[key] for label in labels if key in label}
    assert queues == named(prod, "LocalQueue").keys()
    assert {queue["spec"]["clusterQueue"] for queue in named(prod, "LocalQueue").values()} == named(
        prod, "ClusterQueue"
    ).keys()


def test_the_quota_lets_as_many_tasks_run_as_a_batch_starts_at_once(prod, compiled):
    (group,) = named(prod, "ClusterQueue")["spare"]["spec"]["resourceGroups"]
    profile = platform.PROFILES["gpu"]
    (flavor,) = group["flavors"]
    quota = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    assert flavor["name"] in named(prod, "ResourceFlavor")
    assert int(quota["cpu"]) >= int(profile.cpu) * platform.AT_ONCE
    assert int(quota[profile.accelerator]) >= profile.count * platform.AT_ONCE
    assert int(quota["memory"].removesuffix("Gi")) >= int(profile.memory.removesuffix("Gi")) * platform.AT_ONCE
    assert named(prod, "ResourceFlavor")["spare-gpu"]["spec"]["nodeLabels"] == profile.node_selector


def test_every_account_that_is_named_is_there_and_every_one_has_its_rights_in_s3(objects):
    accounts = named(objects, "ServiceAccount").keys()
    used = {pod["serviceAccountName"] for _, pod, _ in pods(objects) if "serviceAccountName" in pod}
    given = " ".join(argument for _, _, container in containers(objects) for argument in container.get("args", []))
    used |= set(re.findall(r"--service-account=(\S+)", given))
    assert used <= accounts
    # Who asks S3 for nothing has no rights there; the others are for runs and commands that people start.
    assert {f"spare-{path.stem}" for path in (HERE / "aws" / "iam").glob("*.json")} == accounts - {"spare-schedule"}


def test_tokens_are_mounted_only_in_the_pods_of_runs(objects):
    mounted = {
        name for name, account in named(objects, "ServiceAccount").items() if account["automountServiceAccountToken"]
    }
    (binding,) = (one for name, one in named(objects, "RoleBinding").items() if name == "spare-run")
    assert mounted == {subject["name"] for subject in binding["subjects"]}


def test_what_a_pod_may_reach_is_what_it_asks_for(objects):
    """A pod that is told of MLflow has the label that lets it through, and one that asks S3 the one for that."""
    for owner, pod, labels in pods(objects):
        told = [source["configMapRef"]["name"] for one in pod["containers"] for source in one.get("envFrom", [])]
        assert (labels.get("spare/registry") == "true") == (platform.CONFIG in told), owner
        if platform.CONFIG in told:
            assert labels["spare/tls"] == "true", owner


def test_the_policies_are_the_ones_that_come_with_spare(objects):
    assert named(objects, "ConfigMap")["spare-policies"]["data"]["default.yaml"] == POLICIES[DEFAULT].read_text()


def test_the_pipelines_as_custom_resources_are_those_that_are_submitted(prod, compiled):
    versions = named(prod, "PipelineVersion")
    assert len(versions) == len(compiled) == 3
    by_pipeline = {version["spec"]["pipelineName"]: version["spec"] for version in versions.values()}
    assert by_pipeline.keys() == named(prod, "Pipeline").keys()
    for specification, platforms in compiled.values():
        resource = by_pipeline[specification["pipelineInfo"]["name"]]
        assert resource["pipelineSpec"] == specification
        assert resource["platformSpec"] == platforms
