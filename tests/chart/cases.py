"""Values that between them touch every key of the chart's values.yaml, each with another value than its own.

A case holds what belongs together: a key may only matter beside others. Tests send each to a real API server,
and show that each key of it changes what is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]

DIGEST = "sha256:" + "0" * 64
TAINT = [{"key": "dedicated", "operator": "Equal", "value": "training", "effect": "NoSchedule"}]
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]
        }
    }
}
SPREAD = [
    {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "zhongjing"}},
    }
]
PEERS = [{"namespaceSelector": {"matchLabels": {"team": "ingress"}}}]


def placement(name: str) -> Values:
    """Where pods run, and as whom."""
    return {
        "nodeSelector": {"pool": name},
        "tolerations": TAINT,
        "affinity": AFFINITY,
        "topologySpreadConstraints": SPREAD,
        "priorityClassName": "training-high",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "podSecurityContext": {"supplementalGroups": [2000]},
        "securityContext": {"runAsUser": 10002},
    }


def pod(name: str) -> Values:
    """What every pod's template can be given."""
    return placement(name) | {
        "labels": {"team": name},
        "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        "envFrom": [{"configMapRef": {"name": "extra", "optional": True}}],
        "volumes": [{"name": "extra", "configMap": {"name": "extra", "optional": True}}],
        "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    }


RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def ray_pod(name: str) -> Values:
    """What a Ray pod's template can be given besides."""
    return pod(name) | {
        "cpus": 8,
        "memory": "64Gi",
        "resources": {"limits": {"rdma/hca": 1}, "requests": {"rdma/hca": 1}},
        "objectStoreMemory": "2G",
        "tmp": {"sizeLimit": "30Gi"},
        "drainSeconds": 100,
        "terminationGracePeriodSeconds": 130,
        "rayStartParams": {"min-worker-port": 20000},
        "initContainers": [{"name": "look", "image": "busybox", "securityContext": RESTRICTED}],
        "containers": [{"name": "side", "image": "busybox", "securityContext": RESTRICTED}],
        "dnsPolicy": "Default",
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["store"]}],
        "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
        "podTemplate": {"spec": {"shareProcessNamespace": True}},
    }


@dataclass(frozen=True)
class Case:
    """Values, and under what conditions they hold.

    Attributes:
        name: of the test.
        values: over the chart's.
        provisioners: where they may be used.
        restricted: whether the pods keep within the Pod Security level "restricted".
    """

    name: str
    values: Values
    provisioners: tuple[str, ...] = ("static", "kuberay")
    restricted: bool = True
    served: tuple[str, ...] = field(default=())


MONITORING = ("monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule")

CASES = [
    Case(
        "names",
        {
            "nameOverride": "zj",
            "commonLabels": {"cost-centre": "17"},
            "commonAnnotations": {"owner": "team"},
            "image": {
                "repository": "registry.example.com/zhongjing",
                "tag": "0.1.1",
                "pullPolicy": "Always",
                "pullSecrets": [{"name": "pull"}],
            },
        },
    ),
    Case("whole name", {"fullnameOverride": "training", "image": {"digest": DIGEST}}),
    Case("no rights on the cluster", {"crds": {"install": False}, "rbac": {"clusterRoles": False}}),
    Case("resource goes with the release", {"crds": {"keep": False, "adopt": True}}),
    Case(
        "security",
        {
            "podSecurityContext": {
                "runAsUser": 20001,
                "runAsGroup": 20002,
                "fsGroup": 20003,
                "fsGroupChangePolicy": "Always",
                "supplementalGroups": [7],
            },
            "securityContext": {"runAsUser": 20001},
        },
    ),
    Case(
        "no security",
        {
            "podSecurityContext": {
                "runAsNonRoot": False,
                "runAsUser": 0,
                "seccompProfile": {"type": "Unconfined"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": True,
                "readOnlyRootFilesystem": False,
                "capabilities": {"drop": []},
            },
        },
        restricted=False,
    ),
    Case(
        "controller",
        {
            "controller": pod("controller")
            | {
                "replicas": 3,
                "image": {"repository": "registry.example.com/controller", "tag": "1"},
                "args": ["--help"],
                "serviceAccount": {
                    "name": "keeper",
                    "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"},
                },
                "resources": {
                    "requests": {"cpu": "70m", "memory": "250Mi"},
                    "limits": {"memory": "500Mi"},
                },
                "disruptionBudget": {"maxUnavailable": 2},
                "terminationGracePeriodSeconds": 40,
                "podTemplate": {"spec": {"hostname": "controller"}},
            }
        },
    ),
    Case(
        "controller without extras",
        {
            "controller": {
                "image": {"digest": DIGEST},
                "serviceAccount": {"create": False},
                "disruptionBudget": {"enabled": False},
            },
            "rbac": {"create": False},
            "verify": {"enabled": False},
        },
    ),
    Case(
        "ray",
        {
            "ray": {
                "version": "2.60.1",
                "idleTimeoutSeconds": 60,
                "auth": {"existingSecret": "token"},
                "serviceAccount": {"name": "ray", "annotations": {"iam.gke.io/gcp-service-account": "a@b"}},
                "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "1"}],
                "envFrom": [{"secretRef": {"name": "extra", "optional": True}}],
                "rayCluster": {
                    "labels": {"team": "nlp"},
                    "annotations": {"ray.io/ft-enabled": "false"},
                    "spec": {"suspend": True},
                },
                "gcsFaultTolerance": {
                    "enabled": True,
                    "redisAddress": "redis.db.svc:6380",
                    "externalStorageNamespace": "here",
                    "existingSecret": "redis",
                    "passwordKey": "password",
                    "usernameKey": "user",
                },
            }
        },
    ),
    Case("workers that stay", {"ray": {"scaling": "none", "serviceAccount": {"create": False}}}),
    Case("StatefulSets", {"ray": {"provisioner": "static"}}, provisioners=("static",)),
    Case(
        "Ray's autoscaler",
        {
            "ray": {"scaling": "ray", "autoscalerOptions": {"upscalingMode": "Conservative"}},
            "networkPolicy": {"apiServer": {"cidrs": ["192.0.2.1/32"]}},
        },
        provisioners=("kuberay",),
    ),
    Case(
        "head",
        {
            "ray": {
                "head": ray_pod("head")
                | {
                    "scratch": {"size": "50Gi", "reserve": True},
                    "shm": {"sizeLimit": "2Gi"},
                    "service": {
                        "type": "LoadBalancer",
                        "labels": {"expose": "yes"},
                        "annotations": {"service.beta.kubernetes.io/internal": "true"},
                    },
                    "rayGroupSpec": {"enableIngress": False},
                }
            }
        },
    ),
    Case(
        "head on its host",
        {
            "ray": {
                "head": {
                    "hostNetwork": True,
                    "capabilities": ["IPC_LOCK"],
                    "disruptionBudget": {"enabled": True},
                    "scratch": {"type": "hostPath", "path": "/mnt/nvme"},
                }
            },
            "networkPolicy": {"nodeCIDRs": ["192.0.2.0/24"]},
        },
        restricted=False,
    ),
    Case(
        "head with a volume",
        {"ray": {"head": {"scratch": {"type": "ephemeral", "storageClass": "fast", "size": "1Ti"}}}},
    ),
    Case(
        "workers",
        {
            "workers": {
                "defaults": ray_pod("workers")
                | {
                    "minReplicas": 1,
                    "maxReplicas": 4,
                    "gpus": 8,
                    "gpuResource": "amd.com/gpu",
                    "gpuMemoryGiB": 191.7,
                    "shm": {"sizeLimit": "16Gi"},
                    "rayGroupSpec": {"numOfHosts": 2},
                },
                "scratch": {"size": "1T", "reserve": True},
                "groups": {"gpu": None, "amd": {}},
            }
        },
    ),
    Case(
        "workers on their hosts",
        {
            "workers": {
                "scratch": {"type": "hostPath", "path": "/mnt/nvme"},
                "defaults": {"hostNetwork": True, "capabilities": ["IPC_LOCK"]},
            },
            "networkPolicy": {"nodeCIDRs": ["192.0.2.0/24"]},
        },
        restricted=False,
    ),
    Case(
        "two groups",
        {
            "workers": {
                "scratch": {"type": "ephemeral", "storageClass": "fast"},
                "groups": {
                    "gpu": {
                        "gpus": 2,
                        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-80GB-PCIe"},
                        "tolerations": TAINT,
                    },
                    "cpu": {"cpus": 4, "memory": "16Gi", "maxReplicas": 2, "scratch": {"size": "20Gi"}},
                },
            }
        },
    ),
    Case(
        "queue",
        {
            "queue": {
                "kueue": "team",
                "volcano": "team",
                "kai": "team",
                "gang": True,
                "priorityClass": "high",
            }
        },
    ),
    Case(
        "own store",
        {
            "s3": {
                "uri": "s3://models/zhongjing",
                "endpoint": "https://store.example.com:9000",
                "region": "eu-central-1",
                "addressingStyle": "virtual",
                "existingSecret": "store",
                "ca": {"configMap": "authority", "key": "root.pem"},
            },
            "networkPolicy": {"hosts": {"store.example.com": ["192.0.2.0/28", "192.0.2.64/28"]}},
        },
    ),
    Case(
        "AWS by role",
        {"s3": {"bundled": {"enabled": False}, "ca": {"secret": "authority"}}},
    ),
    Case(
        "bundled store",
        {
            "s3": {
                "bundled": {
                    key: value
                    for key, value in pod("store").items()
                    if key not in ("envFrom", "volumes", "volumeMounts")
                }
                | {
                    "persistence": {
                        "size": "2Ti",
                        "storageClass": "fast",
                        "accessModes": ["ReadWriteOncePod"],
                        "annotations": {"backup": "yes"},
                    },
                    "volumeSizeLimitMB": 4096,
                    "maxVolumes": 100,
                    "volumeGrowth": 7,
                    "args": ["-volume.index=leveldb"],
                    "resources": {
                        "requests": {"cpu": 1, "memory": "1Gi"},
                        "limits": {"memory": "4Gi"},
                    },
                    "serviceAccount": {"name": "store", "annotations": {"a": "b"}},
                    "podTemplate": {"spec": {"hostname": "store"}},
                }
            }
        },
    ),
    Case(
        "store without a volume",
        {"s3": {"bundled": {"persistence": {"enabled": False}, "serviceAccount": {"create": False}}}},
    ),
    Case(
        "outside",
        {
            "hub": {
                "endpoint": "https://hub.example.com:8443",
                "existingSecret": "hub",
                "secretKey": "hub-token",
            },
            "proxy": {
                "http": "http://proxy.example.com:3128",
                "https": "http://proxy.example.com:3129",
                "noProxy": ["10.0.0.0/8", "store.example.com"],
            },
        },
    ),
    Case(
        "network",
        {
            "networkPolicy": {
                "dnsPorts": [53, 5353],
                "dnsTo": [
                    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
                ],
                "apiServer": {"cidrs": ["192.0.2.1/32"], "ports": [6443]},
                "dashboardFrom": PEERS,
                "metricsFrom": PEERS,
                "s3From": PEERS,
                "nodeCIDRs": ["192.0.2.0/24"],
                "publicEgress": {"ports": [80, 443], "except": ["10.0.0.0/8"]},
                "extraEgress": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}],
                "extraIngress": [{"from": PEERS}],
            }
        },
    ),
    Case(
        "narrow network",
        {"networkPolicy": {"publicEgress": {"enabled": False}, "metricsFrom": []}},
    ),
    Case("no policies", {"networkPolicy": {"enabled": False}}),
    Case(
        "ingress",
        {
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "host": "ray.example.com",
                "path": "/ray",
                "pathType": "Exact",
                "labels": {"a": "b"},
                "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600"},
                "tls": [{"secretName": "tls", "hosts": ["ray.example.com"]}],
            }
        },
    ),
    Case(
        "monitoring",
        {
            "monitoring": {
                "podMonitor": {
                    "enabled": True,
                    "labels": {"release": "prometheus"},
                    "interval": "30s",
                    "scrapeTimeout": "20s",
                    "relabelings": [{"action": "labeldrop", "regex": "pod"}],
                },
                "prometheusRule": {
                    "enabled": True,
                    "labels": {"release": "prometheus"},
                    "groups": [{"name": "own", "rules": [{"record": "one", "expr": "vector(1)"}]}],
                },
                "prometheus": {"host": "http://prometheus.monitoring.svc:9090"},
                "grafana": {
                    "host": "http://grafana.monitoring.svc",
                    "iframeHost": "https://grafana.example.com",
                    "dashboards": {
                        "enabled": True,
                        "labels": {"grafana_dashboard": "yes"},
                        "annotations": {"grafana_folder": "Training"},
                    },
                },
            }
        },
    ),
    Case(
        "test pod",
        {
            "verify": placement("verify")
            | {
                "zero2": "true",
                "timeoutSeconds": 60,
                "resources": {"requests": {"cpu": "60m", "memory": "210Mi"}, "limits": {"memory": "1Gi"}},
            }
        },
    ),
    Case(
        "pipelines",
        {
            "pipelines": {
                "rm-only": {
                    "base": {"tiny": {}},
                    "sources": [{"name": "pairs", "kind": "ranking", "uri": "s3://corpora/pairs.jsonl"}],
                    "stages": {"rm": {"data": [{"source": "pairs"}]}},
                    "targets": ["rm"],
                }
            }
        },
    ),
]


def case(name: str) -> Case:
    (found,) = [each for each in CASES if each.name == name]
    return found
