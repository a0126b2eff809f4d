"""Keys, certificates and tokens of one life of the cluster."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster.node.place import API_SERVICE_ADDRESS, NODE_NAME, Place

VALID = datetime.timedelta(days=30)
API_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
# User name and groups of those that log in by token.
USERS = {"admin": ("admin", "system:masters"), "node": (f"system:node:{NODE_NAME}", "system:nodes")}


def write_pki(place: Place) -> None:
    """Writes everything that the cluster's programs and its users need to know each other."""
    folder = place.pki
    folder.mkdir(parents=True, mode=0o700)
    authority_key = _key(folder / "ca.key")
    name = _name("zhongjing test cluster")
    authority = (
        _certificate(name, name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder / "ca.crt", authority)

    addresses = ("127.0.0.1", place.node_address, API_SERVICE_ADDRESS)
    api_key = _key(folder / "api.key")
    api = (
        _certificate(_name("kube-apiserver"), name, api_key)
        .add_extension(x509.SubjectAlternativeName(_alternatives(API_NAMES, addresses)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder / "api.crt", api)

    # The API server, as kubelet's client: logs, exec and port forwarding go through it.
    client_key = _key(folder / "kubelet-client.key")
    client = (
        _certificate(_name("apiserver-kubelet-client", "system:masters"), name, client_key)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder / "kubelet-client.crt", client)

    account_key = _key(folder / "sa.key")
    (folder / "sa.pub").write_bytes(
        account_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    lines = []
    for number, (short, (user, group)) in enumerate(USERS.items()):
        token = secrets.token_hex(16)
        lines.append(f"{token},{user},{number},{group}\n")
        (folder / f"{short}.kubeconfig").write_text(_kubeconfig(place, token))
    (folder / "tokens.csv").write_text("".join(lines))


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    path.chmod(0o600)
    return key


def _name(common: str, organization: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + VALID)
    )


def _alternatives(names: Sequence[str], addresses: Sequence[str]) -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in names),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _kubeconfig(place: Place, token: str) -> str:
    cluster = {
        "server": f"https://{place.node_address}:6443",
        "certificate-authority": str(place.pki / "ca.crt"),
    }
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
    )
