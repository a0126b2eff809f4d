"""What keeps the pods of a release from running, and a stage from finding room in them."""

from zhongjing.codes.code import UNREACHABLE, Group

GROUP = Group("Pods of a release", UNREACHABLE)
_code = GROUP.code

NO_ROOM = _code(
    "NoRoom",
    "The release can never hold the workers of a stage.",
    cause="More workers, or larger ones, than the worker groups of the chart's values allow.",
    remedy="raise maxReplicas of a group in workers.groups, or lower workers of the stage",
)
WORKERS_STARTING = _code(
    "WorkersStarting",
    "The Ray pods that a stage needs are not ready yet.",
    cause="Idle worker pods were removed and are made again; a new node has to pull the image.",
    remedy="wait; it goes on by itself, and `kubectl get pods` shows how far it is",
)
POD_STARTING = _code(
    "PodStarting",
    "A pod of the release is being started.",
    cause="It was just made; a new node has to pull the image, volumes are attached.",
    remedy="wait; `kubectl describe pods` shows what it does",
)
IMAGE_PULL_FAILED = _code(
    "ImagePullFailed",
    "The image of a pod cannot be pulled.",
    cause="No image is published: it has to be built and pushed; or its registry needs a login.",
    remedy="`make image push IMAGE=registry.example/zhongjing:0.1`, and set image.repository and "
    "image.tag; for a login set image.pullSecrets",
)
POD_UNSCHEDULABLE = _code(
    "PodUnschedulable",
    "No node has room for a pod now.",
    cause="Other pods hold the nodes, a queue holds the pod back, or an autoscaler is making a node.",
    remedy="wait, free a node, or lower the size of the pods in workers.groups of the chart's values",
)
NO_FITTING_NODE = _code(
    "NoFittingNode",
    "No node of the cluster can ever hold a pod.",
    cause="It asks for more than any node has, its nodeSelector matches none, or taints keep it away.",
    remedy="change size, nodeSelector or tolerations of the group in workers.groups of the chart's values",
)
POD_CRASHES = _code(
    "PodCrashes",
    "A container of a pod ends again and again.",
    cause="A wrong setting, another image than the chart's, or a service that it needs and cannot reach.",
    remedy="see its last words: `kubectl logs POD --previous`",
)
POD_OUT_OF_MEMORY = _code(
    "PodOutOfMemory",
    "A container was killed because it used more memory than its limit.",
    cause="Workers, models or the object store of Ray need more than the pod has.",
    remedy="raise the memory of the pods in the chart's values, or lower microBatchSize or workers",
)
POD_EVICTED = _code(
    "PodEvicted",
    "A pod was evicted from its node.",
    cause="The node ran out of disk or memory, or the pod's scratch grew beyond its limit.",
    remedy="raise workers.scratch and the pod's requests in the chart's values, or free the node's disk",
)
POD_LOST = _code(
    "PodLost",
    "The node of a pod does not answer.",
    cause="The node is down, cut off or being replaced.",
    remedy="wait: workers are made elsewhere; for others `kubectl delete node NODE`, or "
    "`kubectl delete pod POD --force`",
)
POD_MISCONFIGURED = _code(
    "PodMisconfigured",
    "A pod cannot start because something that it refers to is missing or not allowed.",
    cause="A Secret, a key of it or a ConfigMap does not exist, or the image runs as root.",
    remedy="make what the message names; Secrets are named by existingSecret in the chart's values",
)
POD_REFUSED = _code(
    "PodRefused",
    "The cluster refuses to make a pod.",
    cause="Pod Security, an admission webhook, a LimitRange, or a missing ServiceAccount.",
    remedy="change what the message names in the chart's values, or ask who runs the cluster",
)
QUOTA_EXCEEDED = _code(
    "QuotaExceeded",
    "The namespace's quota has no room for a pod.",
    cause="A ResourceQuota that is smaller than the release, or that other pods use up.",
    remedy="raise the quota (`kubectl describe quota`), or lower the worker groups in the chart's values",
)
VOLUME_PENDING = _code(
    "VolumePending",
    "A volume of a pod is not there.",
    cause="No default storage class, a class that does not exist, or a disk that cannot be attached.",
    remedy="name a class of `kubectl get storageclass` in the chart's values (s3.bundled.persistence, "
    "workers.scratch)",
)
WORKLOAD_MISSING = _code(
    "WorkloadMissing",
    "A part of the release is not in the cluster.",
    cause="It was deleted by hand, or the installation ended half way.",
    remedy="install it again: `helm upgrade zhongjing ./helm --reset-then-reuse-values`, with the "
    "release's name and chart",
)
PROVISIONER_MISMATCH = _code(
    "ProvisionerMismatch",
    "The Ray cluster was made by another provisioner than the release has.",
    cause="ray.provisioner was changed, and what the other one made is still there.",
    remedy="delete what the message names; running stages go on from their checkpoints",
)
KUBERAY_MISSING = _code(
    "KubeRayMissing",
    "KubeRay is not installed.",
    cause="The release has ray.provisioner=kuberay, and the cluster knows no RayClusters.",
    remedy="install KubeRay's operator (k8s/README.md), or set ray.provisioner=static",
)
KUBERAY_NOT_RUNNING = _code(
    "KubeRayNotRunning",
    "KubeRay's operator does not look after the RayCluster.",
    cause="Its CRD is installed but the operator does not run, or does not watch this namespace.",
    remedy="see the operator's pods and its watchNamespace, or set ray.provisioner=static",
)
SECRET_INCOMPLETE = _code(
    "SecretIncomplete",
    "A Secret of the release is missing or cannot be used.",
    cause="The Secret that the chart's values name was not made, or lacks a key.",
    remedy="correct the Secret as the message says; pods take it up by themselves",
)
