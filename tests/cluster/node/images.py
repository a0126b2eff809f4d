"""Images: built from the project's own Dockerfile, laid out as files, taken into the node.

There is no registry and no Docker here. Only layers that the node lacks travel: new code takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from tests.cluster.node.place import DEBIAN, PAUSE_IMAGE, REPOSITORY, HarnessError, Place

BASE_IMAGE = f"localhost/zhongjing-base:{DEBIAN}"
TARGETS = {"train": "", "controller": "-controller"}
"""Target of the Dockerfile, and what its images' tags end in."""
# Settings of this machine that downloads inside of a build need, too.
INDEX_SETTINGS = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
NAME_OF_IMAGE = "io.containerd.image.name"
LARGE_BYTES = 1 << 20

Json = dict[str, Any]


def version() -> str:
    """Of the project; the images' tag."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def image_name(target: str = "train") -> str:
    """As the node keeps it; ``zhongjing:<version>`` means the same to kubelet."""
    return f"docker.io/library/zhongjing:{version()}{TARGETS[target]}"


def remove_abandoned_builds(place: Place) -> None:
    """Removes what builds that were killed left: some 6 GB each. Needs the lock of ``prepare``."""
    _run([*_buildah(place), "rm", "--all"], check=False)


def build_images(place: Place, say: Callable[[str], None], targets: Iterable[str] = TARGETS) -> None:
    """Builds the project's images and lays them out.

    The first time takes 5 to 10 minutes and 13 GB; then a change of code takes some 10 s.

    Args:
        place: keeps the layers.
        say: told of what takes long.
        targets: which of the two.
    """
    say("building the images")
    _ensure_base_image(place, say)
    commit = _run(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], check=False).strip() or "unknown"
    caches = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    caches.mkdir(parents=True, exist_ok=True)
    arguments = {
        "BASE_IMAGE": BASE_IMAGE,
        "ZHONGJING_COMMIT": commit,
        "UV_CACHE_DIR": "/run/uv-cache",
        **{name: os.environ[name] for name in INDEX_SETTINGS if os.environ.get(name)},
    }
    volumes = [f"{caches}:/run/uv-cache"]
    authorities = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    if authorities and Path(authorities).is_file():
        volumes.append(f"{Path(authorities).resolve()}:/run/certificates.pem:ro")
        arguments |= {"SSL_CERT_FILE": "/run/certificates.pem", "PIP_CERT": "/run/certificates.pem"}
    for target in targets:
        name = image_name(target)
        command = [*_buildah(place), "bud", "--layers", "--pull-never", "--format", "oci"]
        command += ["--isolation", "chroot", "--network", "host", "--target", target, "--tag", name]
        for argument, value in arguments.items():
            command += ["--build-arg", f"{argument}={value}"]
        for volume in volumes:
            command += ["--volume", volume]
        _run([*command, str(REPOSITORY)], log=place.logs / f"image-{target}.log", environment=_own_tmp(place))
        _lay_out(place, name)
    _prune(place.layout)


def lay_out_pause(place: Place) -> None:
    """The image that holds a pod's namespaces: one static program."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        info = tarfile.TarInfo("pause")
        data = (place.bin / "pause").read_bytes()
        info.size, info.mode = len(data), 0o755
        archive.addfile(info, io.BytesIO(data))
    content = layer.getvalue()
    place.layout.joinpath("blobs", "sha256").mkdir(parents=True, exist_ok=True)
    digest = _write_blob(place.layout, content)
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    config = json.dumps(configuration).encode()
    kind = "application/vnd.oci.image"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {
                "mediaType": f"{kind}.config.v1+json",
                "digest": _write_blob(place.layout, config),
                "size": len(config),
            },
            "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": digest, "size": len(content)}],
        }
    ).encode()
    entry = {
        "mediaType": f"{kind}.manifest.v1+json",
        "digest": _write_blob(place.layout, manifest),
        "size": len(manifest),
        "annotations": {"org.opencontainers.image.ref.name": PAUSE_IMAGE},
    }
    others = [other for other in _index(place.layout) if _reference(other) != PAUSE_IMAGE]
    (place.layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (place.layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [*others, entry]}))


def import_images(place: Place, names: Sequence[str]) -> int:
    """Takes images that were laid out into the node, or what it lacks of them.

    Args:
        place: its containerd runs.
        names: full names.

    Returns:
        Bytes that had to be sent.
    """
    entries = [_entry(place.layout, name) for name in names]
    wanted = {digest for entry in entries for digest in _digests(place.layout, entry)}
    missing = sorted(wanted - set(ctr(place, "content", "ls", "--quiet").split()))
    index = {"schemaVersion": 2, "manifests": entries}
    with subprocess.Popen(
        [*_ctr(place), "images", "import", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # A broken pipe says nothing; what the other side printed does.
        with (
            contextlib.suppress(BrokenPipeError),
            process.stdin as stream,
            tarfile.open(fileobj=stream, mode="w|") as archive,
        ):
            for name, content in (
                ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
                ("index.json", json.dumps(index).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            for digest in missing:
                archive.add(_blob(place.layout, digest), f"blobs/sha256/{digest.removeprefix('sha256:')}")
        said = process.stdout.read().decode()
    if process.returncode:
        raise HarnessError(f"importing {', '.join(names)}: {said.strip()}")
    _share_blobs(place, wanted)
    return sum(_blob(place.layout, digest).stat().st_size for digest in missing)


def ctr(place: Place, *arguments: str) -> str:
    """containerd's own command, on the images and containers of kubelet."""
    return _run([*_ctr(place), *arguments])


def _ctr(place: Place) -> list[str]:
    return ["ctr", "--address", str(place.containerd_socket), "--namespace", "k8s.io"]


def _buildah(place: Place) -> list[str]:
    return ["buildah", "--root", str(place.storage), "--runroot", str(place.root / "containers-run")]


def _own_tmp(place: Place) -> dict[str, str]:
    """buildah keeps caches in the temporary folder, and copies layers through it."""
    folder = place.root / "tmp"
    folder.mkdir(exist_ok=True)
    return {"TMPDIR": str(folder)}


def _ensure_base_image(place: Place, say: Callable[[str], None]) -> None:
    """Debian's smallest system, from its packages."""
    found = _run([*_buildah(place), "images", "--quiet", "--filter", f"reference={BASE_IMAGE}"], check=False)
    if found.strip():
        return
    say("making the base image")
    root = place.root / "rootfs"
    shutil.rmtree(root, ignore_errors=True)
    _run(["debootstrap", "--variant=minbase", DEBIAN, str(root)], log=place.logs / "debootstrap.log")
    for package in root.joinpath("var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    container = _run([*_buildah(place), "from", "scratch"]).strip()
    _run([*_buildah(place), "copy", "--quiet", container, str(root), "/"])
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _run([*_buildah(place), "config", "--env", path, "--cmd", "/bin/bash", container])
    _run([*_buildah(place), "commit", "--quiet", "--rm", container, BASE_IMAGE], environment=_own_tmp(place))
    shutil.rmtree(root)


def _lay_out(place: Place, name: str) -> None:
    """Copies an image out of buildah's layers; layers that are there already are not written again."""
    source = f"containers-storage:[overlay@{place.storage}+{place.root / 'containers-run'}]{name}"
    command = ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers"]
    place.layout.mkdir(exist_ok=True)
    _run([*command, source, f"oci:{place.layout}:{name}"], environment=_own_tmp(place))


def _index(layout: Path) -> list[Json]:
    try:
        return cast("list[Json]", json.loads((layout / "index.json").read_text())["manifests"])
    except FileNotFoundError:
        return []


def _reference(entry: Json) -> str | None:
    return cast("str | None", entry.get("annotations", {}).get("org.opencontainers.image.ref.name"))


def _entry(layout: Path, name: str) -> Json:
    for entry in _index(layout):
        if _reference(entry) == name:
            return {**entry, "annotations": {NAME_OF_IMAGE: name}}
    raise HarnessError(f"{name} has not been built")


def _digests(layout: Path, entry: Json) -> list[str]:
    """Of the manifest, the configuration and the layers."""
    manifest = json.loads(_blob(layout, entry["digest"]).read_text())
    return [entry["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _write_blob(layout: Path, content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    _blob(layout, digest).write_bytes(content)
    return digest


def _prune(layout: Path) -> None:
    """Deletes what no image consists of any more."""
    kept = {digest for entry in _index(layout) for digest in _digests(layout, entry)}
    for blob in (layout / "blobs" / "sha256").iterdir():
        if f"sha256:{blob.name}" not in kept:
            blob.unlink()


def _share_blobs(place: Place, digests: Iterable[str]) -> None:
    """One copy on disk of what both the layout and containerd keep: 6 GB less."""
    kept = place.containerd / "io.containerd.content.v1.content" / "blobs" / "sha256"
    for digest in digests:
        ours, theirs = _blob(place.layout, digest), kept / digest.removeprefix("sha256:")
        if ours.stat().st_size > LARGE_BYTES and theirs.exists() and not ours.samefile(theirs):
            linked = ours.with_name(f"{ours.name}.link")
            linked.hardlink_to(theirs)
            linked.replace(ours)


def _run(
    command: Sequence[str],
    *,
    log: Path | None = None,
    check: bool = True,
    environment: dict[str, str] | None = None,
) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise HarnessError(f"{' '.join(command[:6])} ...: exit code {done.returncode}: {said}")
    return done.stdout
