"""What can be wrong with the object store and with what lies in it."""

from zhongjing.codes.code import BAD_INPUT, UNREACHABLE, Group

GROUP = Group("The object store", UNREACHABLE)
_code = GROUP.code

STORAGE_UNREACHABLE = _code(
    "StorageUnreachable",
    "The object store does not answer.",
    cause="A wrong endpoint, a server that is down or being started again, a network or proxy in between; "
    "or a network policy: networkPolicy.hosts in the chart's values has the ranges of inside names.",
    remedy="check spec.storage.endpoint (AWS_ENDPOINT_URL) and that the server runs; "
    "spec.storage.deadlineSeconds sets how long an outage is borne",
)
STORAGE_FAILING = _code(
    "StorageFailing",
    "The object store answers, but fails (HTTP 5xx).",
    cause="It is overloaded or being repaired, or its disk is full (with --local: the disk of the workdir).",
    remedy="see that the store's disk has room, and its log; then give the same command again",
)
ACCESS_DENIED = _code(
    "AccessDenied",
    "The object store refuses the credentials, or what was asked for.",
    cause="Wrong or expired keys, a clock that is minutes off, or a policy without this permission.",
    remedy="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the clock and the bucket's policy",
)
BUCKET_NOT_FOUND = _code(
    "BucketNotFound",
    "The bucket does not exist.",
    cause="A typing error in storage.uri, or a bucket that was not made yet.",
    remedy="make the bucket, or correct storage.uri",
)
BUCKET_TAKEN = _code(
    "BucketTaken",
    "The bucket's name belongs to another account.",
    cause="Names of buckets are shared by all users of a store.",
    remedy="choose another spec.storage.uri",
)
CLOCK_SKEWED = _code(
    "ClockSkewed",
    "This machine's clock differs too much from the object store's.",
    cause="No time service runs, or a virtual machine was asleep. Requests are signed with the time.",
    remedy="set the clock (NTP)",
)
OBJECT_NOT_FOUND = _code(
    "ObjectNotFound",
    "There is no such object.",
    cause="It was removed, or never written.",
    remedy="check the URI that the message names; a missing result is made anew by running its stage",
)
CONFLICT = _code(
    "Conflict",
    "Another writer was first.",
    cause="Two commands changed the same pipeline at the same time.",
    remedy="give the same command again",
)
SUPERSEDED = _code(
    "Superseded",
    "A later or faster attempt of the stage has stored this already.",
    cause="An attempt that was believed dead went on beside its successor.",
    remedy="nothing: what the other attempt stored is in use",
)
OBJECT_CHANGED = _code(
    "ObjectChanged",
    "An object was replaced while it was read.",
    cause="Two uploads to the same place at the same time.",
    remedy="wait until the upload has ended and give the same command again",
)
INCOMPLETE_UPLOAD = _code(
    "IncompleteUpload",
    "Not all of a file is stored.",
    cause="The file changed while it was uploaded, or another process wrote to the same place.",
    remedy="give the same command again once the file does not change any more",
)
STORAGE_REFUSED = _code(
    "StorageRefused",
    "The object store refused a request.",
    cause="A policy, or a store that lacks something S3 has.",
    remedy="see the store's own words in the message",
)
STORAGE_FULL = _code(
    "StorageFull",
    "The object store takes no more.",
    cause="Its disks are full (HTTP 507), or a quota of the bucket or of the account is used up.",
    remedy="raise the quota or enlarge the store's volume, or delete what is not needed: docs/operations.md, "
    "Free space in the store, says what (deleting a pipeline with deletionPolicy Retain frees nothing); "
    "then give the same command again",
)
NO_CONDITIONAL_WRITES = _code(
    "NoConditionalWrites",
    "The object store ignores or refuses If-None-Match.",
    cause="An old or partial S3 implementation: completion marks could be overwritten.",
    remedy="use a store with conditional writes: AWS S3, MinIO, Ceph (Squid), SeaweedFS",
)
DISK_FULL = _code(
    "DiskFull",
    "The disk is full.",
    cause="Checkpoints, models and caches outgrew the disk of the workdir or of the scratch folder.",
    remedy="free some space (on a cluster: raise workers.scratch.size, or that of ray.head, in the chart's "
    "values) and give the same command again: the run goes on from its last checkpoint",
)
UNUSABLE_FILE = _code(
    "UnusableFile",
    "A local file or folder cannot be read or written.",
    cause="No permission, or it was removed while it was in use.",
    remedy="check the path that the message names",
)
DAMAGED_OBJECT = _code(
    "DamagedObject",
    "An object is not what was written.",
    cause="It was cut, changed by hand, or the disk below the store is failing.",
    remedy="run the stage that made it again: `zhongjing submit --pipeline NAME --rerun STAGE`",
)
NEWER_VERSION = _code(
    "NewerVersion",
    "The object was written by a newer release of zhongjing.",
    cause="A newer release runs on the same storage.",
    remedy="use that release, or upgrade this one",
)
DAMAGED_CHECKPOINT = _code(
    "DamagedCheckpoint",
    "A checkpoint cannot be used.",
    cause="It is cut, of another model or seed, or of another release.",
    remedy="begin the stage again (`zhongjing submit --pipeline NAME --rerun STAGE`), or use the "
    "settings it was made with",
)
CHECKPOINT_LOST = _code(
    "CheckpointNotStored",
    "A checkpoint could not be stored.",
    cause="The store was away for long, or the uploading process was killed (often for memory).",
    remedy="give the same command again: the run goes on from the checkpoint before",
)
NO_FREE_PORT = _code(
    "NoFreePort",
    "The embedded S3 server found no free ports.",
    cause="Other programs hold the ports between 11000 and 32000, or loopback is blocked.",
    remedy="see the log that the message names, and end programs that hold many ports",
)
S3_SERVER_FAILED = _code(
    "S3ServerFailed",
    "The embedded S3 server did not start, or died again and again.",
    cause="A full disk, a damaged data folder, or a platform that its program does not run on.",
    remedy="see the log that the message names, then: `zhongjing doctor --local`",
)

SETTINGS = Group("Settings of the object store", BAD_INPUT)
INVALID_STORAGE = SETTINGS.code(
    "InvalidStorageSettings",
    "The settings of the object store contradict each other or are not complete.",
    cause="No credentials, an endpoint without a scheme, or a CA file that is not there.",
    remedy="check spec.storage and the AWS_ variables of the environment",
)
WRONG_REGION = SETTINGS.code(
    "WrongRegion",
    "The bucket is in another region.",
    cause="spec.storage.region or AWS_REGION is not the bucket's.",
    remedy="set spec.storage.region (or AWS_REGION) to the bucket's region",
)
WRONG_ADDRESSING = SETTINGS.code(
    "WrongAddressing",
    "The object store takes no bucket in the path of a URL.",
    cause="Alibaba OSS, Tencent COS and others have a host name for each bucket.",
    remedy="set spec.storage.addressingStyle to virtual (of a release: s3.addressingStyle of its values)",
)
UNTRUSTED_CERTIFICATE = SETTINGS.code(
    "UntrustedCertificate",
    "The certificate of the object store is not trusted.",
    cause="An authority of one's own signed it, it has expired, or it is made out to another host name.",
    remedy="name the authority's PEM file in spec.storage.caBundle (AWS_CA_BUNDLE; of a release: s3.ca of "
    "its values), or correct the host name of the endpoint",
)
