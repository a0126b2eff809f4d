"""What can be wrong with a Kubernetes cluster, a release of the chart, and pipelines in it."""

from zhongjing.codes.code import BAD_INPUT, UNREACHABLE, Group

GROUP = Group("Kubernetes", UNREACHABLE)
_code = GROUP.code

INVALID_RELEASE = _code(
    "InvalidRelease",
    "The configuration of a release cannot be read.",
    cause="Chart and image, or chart and command line, are of different versions.",
    remedy="install chart, image and command line of the same version",
)
API_UNREACHABLE = _code(
    "ApiUnreachable",
    "The Kubernetes API does not answer.",
    cause="A wrong context, a cluster that is down or being upgraded, a VPN or proxy in between.",
    remedy="check it with `kubectl get --raw /readyz` (same --context); the controller tries again by itself",
)
INVALID_KUBECONFIG = _code(
    "InvalidKubeconfig",
    "The kubeconfig cannot be used.",
    cause="A context that is not in it, a file that is damaged, or a login plugin that fails.",
    remedy="see `kubectl config get-contexts`; --context names another one, KUBECONFIG another file",
)
NOT_LOGGED_IN = _code(
    "NotLoggedIn",
    "The Kubernetes API does not know who asks.",
    cause="A token or certificate of the kubeconfig that has expired, or a login plugin that failed.",
    remedy="log in to the cluster again, and check it with `kubectl auth whoami`",
)
FORBIDDEN = _code(
    "Forbidden",
    "The Kubernetes API refuses it to this user.",
    cause="A Role that lacks a rule, or no RoleBinding in this namespace.",
    remedy="ask for the Role that the message names; the chart has view and edit roles for users",
)
CRD_MISSING = _code(
    "CrdMissing",
    "The cluster does not know TrainingPipelines.",
    cause="The custom resource definition is not installed: crds.install=false, or it was removed.",
    remedy="install it: `kubectl apply --server-side -f helm/files/trainingpipeline-crd.yaml`",
)
CRD_VERSION = _code(
    "CrdVersion",
    "The cluster's definition of TrainingPipelines is not this version's.",
    cause="The command line or the release was upgraded without the definition, or the other way round.",
    remedy="install one version of both; update the definition: "
    "`kubectl apply --server-side -f helm/files/trainingpipeline-crd.yaml`",
)
NAMESPACE_TERMINATING = _code(
    "NamespaceTerminating",
    "The namespace is being deleted.",
    cause="It was deleted; nothing can be made in it any more.",
    remedy="wait until it is gone, make it again and install the release again",
)
OBJECT_REFUSED = _code(
    "ObjectRefused",
    "The Kubernetes API refuses an object.",
    cause="A field that does not exist or is out of range, a quota, or an admission policy of the cluster.",
    remedy="see the API server's words in the message",
)
KUBERNETES_OBJECT_NOT_FOUND = _code(
    "KubernetesObjectNotFound",
    "There is no such object in the cluster.",
    cause="Another namespace or context, or it was deleted.",
    remedy="list what there is: `kubectl get tp --all-namespaces`",
)
KUBERNETES_OBJECT_CONFLICT = _code(
    "KubernetesObjectConflict",
    "Another writer changed an object of the cluster first.",
    cause="Two commands or controllers wrote it at the same time, or one of its name was made before.",
    remedy="give the same command again; a controller looks again by itself",
)
POD_NOT_READY = _code(
    "PodNotReady",
    "A pod of the release cannot be reached.",
    cause="It is being started, cannot be scheduled, cannot pull its image, or fails again and again.",
    remedy="see `kubectl get pods` and `kubectl describe pods`; the command may be given again",
)
NO_RELEASE = _code(
    "NoRelease",
    "Zhongjing is not installed in the namespace.",
    cause="Another namespace or context than the one that the chart was installed in.",
    remedy="name its namespace with -n, install it (`helm install zhongjing ./helm`), or add --local",
)
SEVERAL_RELEASES = _code(
    "SeveralReleases",
    "Several releases of the chart are in the namespace.",
    cause="Each is a Ray cluster of its own: which one is meant must be said.",
    remedy="name one with --release",
)
RAY_TOKEN_REFUSED = _code(
    "RayTokenRefused",
    "Ray refuses the token of the release.",
    cause="The Secret was changed, and Ray's pods still run with the token that they were started with.",
    remedy="the controller replaces Ray's pods within minutes; if it does not: `kubectl delete pods -l "
    "'app.kubernetes.io/component in (ray-head, ray-worker)'`. Running stages go on from their checkpoints",
)
DOCUMENTS = Group("Documents on a cluster", BAD_INPUT)
LOCAL_PATH = DOCUMENTS.code(
    "LocalPath",
    "A pipeline on a cluster names a path of one machine.",
    cause="The document was applied with kubectl, and a source or model in it is a local path.",
    remedy="submit the document instead: `zhongjing submit -f FILE` uploads local files; or name an "
    "s3:// URI",
)
RESERVED_NAME = DOCUMENTS.code(
    "ReservedName",
    "A pipeline's name is taken by a folder of the release.",
    cause="Pipelines, caches and uploads of a namespace stand side by side in the bucket.",
    remedy="give the pipeline another name",
)
UNREADABLE_STATUS = _code(
    "UnreadableStatus",
    "The status of a TrainingPipeline is not one that a controller writes.",
    cause="It was edited by hand, or a controller of another version wrote it.",
    remedy="install the version that wrote it; or delete the object and apply it again: artifacts stay, and "
    "what is done is not done again",
)
