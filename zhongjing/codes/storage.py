"""What can be wrong with the object store and with what lies in it."""

from zhongjing.codes.code import BAD_INPUT, UNREACHABLE, Group

GROUP = Group("The object store", UNREACHABLE)
_code = GROUP.code

STORAGE_UNREACHABLE = _code(
    "StorageUnreachable",
    "The object store does not answer.",
    cause="A wrong endpoint, a server that is down or being started again, a network or proxy in between.",
    remedy="check spec.storage.endpoint (AWS_ENDPOINT_URL) and that the server runs",
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
    cause="A typing error in storage.uri, or a bucket that nobody has made yet.",
    remedy="make the bucket, or correct storage.uri",
)
OBJECT_NOT_FOUND = _code(
    "ObjectNotFound",
    "There is no such object.",
    cause="It was removed, or never written.",
    remedy="check the URI that the message names; a missing result is made anew by running its stage",
)
CONFLICT = _code(
    "Conflict",
    "Somebody else wrote first.",
    cause="Two commands changed the same pipeline at the same time.",
    remedy="give the same command again",
)
STORAGE_REFUSED = _code(
    "StorageRefused",
    "The object store refused a request.",
    cause="A quota, a policy, or a store that lacks something S3 has.",
    remedy="see the store's answer in the message",
)
NO_CONDITIONAL_WRITES = _code(
    "NoConditionalWrites",
    "The object store ignores If-None-Match.",
    cause="An old or partial S3 implementation: completion marks could be overwritten.",
    remedy="use a store with conditional writes: AWS S3, MinIO, Ceph (Squid), SeaweedFS",
)
DISK_FULL = _code(
    "DiskFull",
    "The disk is full.",
    cause="Checkpoints, models and caches outgrew the disk of the workdir or of the scratch folder.",
    remedy="free some space and give the same command again: the run goes on from its last checkpoint",
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
    remedy="run the stage that made it again: zhongjing submit --rerun STAGE",
)
NEWER_VERSION = _code(
    "NewerVersion",
    "The object was written by a newer release of zhongjing.",
    cause="Somebody runs a newer release on the same storage.",
    remedy="use that release, or upgrade this one",
)
DAMAGED_CHECKPOINT = _code(
    "DamagedCheckpoint",
    "A checkpoint cannot be used.",
    cause="It is cut, of another model or seed, or of another release.",
    remedy="begin the stage again (zhongjing submit --rerun STAGE), or use the settings it was made with",
)
CHECKPOINT_LOST = _code(
    "CheckpointNotStored",
    "A checkpoint could not be stored.",
    cause="The store was away for long, or the uploading process was killed (often for memory).",
    remedy="give the same command again: the run goes on from the checkpoint before",
)
S3_SERVER_FAILED = _code(
    "S3ServerFailed",
    "The embedded S3 server did not start, or died again and again.",
    cause="A full disk, a damaged data folder, or a platform that its program does not run on.",
    remedy="see the log that the message names, then: zhongjing doctor --local",
)

SETTINGS = Group("Settings of the object store", BAD_INPUT)
INVALID_STORAGE = SETTINGS.code(
    "InvalidStorageSettings",
    "The settings of the object store contradict each other or are not complete.",
    cause="No credentials, an endpoint without a scheme, or a CA file that is not there.",
    remedy="check spec.storage and the AWS_ variables of the environment",
)
