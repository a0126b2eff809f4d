"""Where secrets are found: the environment, the workdir, the files of well-known tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zhongjing.cli.reporting.secrets import Secret, find_secrets, is_secret_key, is_secret_name, too_short


def values(*environments: dict[str, str], workdir: Path | None = None) -> dict[str, str]:
    return {secret.value: secret.name for secret in find_secrets(workdir, environments)}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "AWS_SESSION_TOKEN",
            "AWS_ROLE_ARN",
            "HF_TOKEN",
            "TOKEN",
        ),
        *(
            "SECRET",
            "PASSWORD",
            "DB_PASSWORD",
            "PGPASSWORD",
            "GITHUB_TOKEN",
            "GITHUBTOKEN",
            "TOKEN_2",
            "hf_token",
        ),
        *(
            "WANDB_API_KEY",
            "apiKey",
            "secretAccessKey",
            "CLIENT_SECRET",
            "MYSQL_PWD",
            "GIT_PASS",
            "SMTP_AUTH",
        ),
        *("MINIO_ROOT_PASSWORD", "client-key-data", "CREDENTIALS"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "TOKENIZERS_PARALLELISM",
            "MAX_TOKENS",
            "AWS_REGION",
            "AWS_ENDPOINT_URL",
            "AWS_CA_BUNDLE",
            "PWD",
            "PATH",
        ),
        *(
            "OLDPWD",
            "RAY_AUTH_MODE",
            "HOME",
            "SORT_KEY",
            "RAY_AUTH_TOKEN_PATH",
            "SECRETARY",
            "PATIENTS",
            "LANG",
        ),
    ],
)
def test_names_of_settings(name: str) -> None:
    assert not is_secret_name(name)


def test_keys_of_documents() -> None:
    assert all(
        map(is_secret_key, ["hfToken", "token", "secretAccessKey", "password", "api-key", "accessKeyId"])
    )
    names = ["tokenCache", "tokens", "eosToken", "pad_token", "tokenFile", "key", "keyFields", "google-auth"]
    assert not any(map(is_secret_key, names))


def test_values_of_the_environment() -> None:
    found = values(
        {
            "AWS_SECRET_ACCESS_KEY": "verysecretkey",
            "AWS_REGION": "eu-central-1",
            "HF_TOKEN": " hf_padded \n",
            "DEPLOY_KEY": "a-key-of-16-chars",
            "SORT_KEY": "name",
            "MAX_TOKENS": "4096",
            "SECRET": "true",
            "PASSWORD": "abc",
            "HTTPS_PROXY": "http://joe:p%40ssword@proxy:3128",
        },
        {"TOKEN": "of-the-supervisor", "HF_TOKEN": "hf_padded"},
    )
    assert found == {
        "verysecretkey": "AWS_SECRET_ACCESS_KEY",
        "hf_padded": "HF_TOKEN",
        "a-key-of-16-chars": "DEPLOY_KEY",
        "p%40ssword": "HTTPS_PROXY",
        "p@ssword": "HTTPS_PROXY",
        "of-the-supervisor": "TOKEN",
    }


def test_values_too_short_to_look_for_are_named() -> None:
    assert too_short([{"PASSWORD": "abc", "TOKEN": "", "SECRET": "long enough"}]) == ["PASSWORD"]


def test_files_that_variables_name(tmp_path: Path) -> None:
    token, settings = tmp_path / "token", tmp_path / "settings"
    token.write_text("token-in-a-file==\n")
    settings.write_text("[default]\nregion = eu-central-1\naws_secret_access_key = key-in-a-file\n")
    found = values(
        {
            "RAY_AUTH_TOKEN_PATH": str(token),
            "AWS_SHARED_CREDENTIALS_FILE": str(settings),
            "SERVICE_SECRET": str(token),
            "OTHER_TOKEN_FILE": str(tmp_path / "missing"),
        }
    )
    assert found == {"token-in-a-file==": "RAY_AUTH_TOKEN_PATH", "key-in-a-file": "aws_secret_access_key"}


def test_files_of_tools(tmp_path: Path) -> None:
    files = {
        ".cache/huggingface/token": "hf_of_the_hub",
        ".ray/auth_token": "of-ray-itself",
        ".netrc": "machine h login joe password in-netrc\n",
        ".aws/credentials": "[x]\naws_access_key_id=AKIDEXAMPLE\naws_secret_access_key=in/aws\n",
        ".kube/config": "users:\n- user:\n    token: in-kubeconfig\n    client-key-data: TFMwdExTMUNSVWRK\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert set(values({"HOME": str(tmp_path)})) == {
        *("hf_of_the_hub", "of-ray-itself", "in-netrc", "AKIDEXAMPLE", "in/aws", "in-kubeconfig"),
        "TFMwdExTMUNSVWRK",
    }


def test_keys_of_the_workdir_also_from_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    (tmp_path / "ray-token").write_text("the-token-of-ray")
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_SECRET_ACCESS_KEY": "of-the-workdir"}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    keys = {
        "identities": [{"name": "z", "credentials": [{"accessKey": "ak-1234", "secretKey": "sk-of-weed"}]}]
    }
    (tmp_path / "s3" / "s3.json").write_text(json.dumps(keys, indent=1))
    expected = {"the-token-of-ray", "of-the-workdir", "ak-1234", "sk-of-weed"}
    assert set(values(workdir=tmp_path)) == expected
    for name in ("environment.json", "s3/s3.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.rstrip("}] \n"))  # cut off
    assert set(values(workdir=tmp_path)) == expected


def test_a_value_is_found_once() -> None:
    found = find_secrets(None, [{"HF_TOKEN": "the-same-value", "TOKEN": "the-same-value"}])
    assert found == [Secret("HF_TOKEN", "the-same-value")]
