"""What must not leave the machine, in every form that it may take; and that nothing else is touched."""

from __future__ import annotations

import base64
import json
import random
import time
from urllib.parse import quote

import pytest

from tests.report_support import AWKWARD, KEY, PEM, RECORD, spellings
from zhongjing.cli.reporting.redact import Identity, LogStream, Redactor, drop_keys
from zhongjing.cli.reporting.secrets import Secret

TOKEN = "0123456789abcdef" * 4
IDENTITY = Identity(
    homes=["/home/liming", "/mnt/home2/liming"], users=["liming"], hosts=["gpu-07.ward", "gpu-07"]
)

REDACTOR = Redactor(
    [Secret("AWS_SECRET_ACCESS_KEY", KEY), Secret("PASSWORD", AWKWARD), Secret("RAY_AUTH_TOKEN", TOKEN)],
    IDENTITY,
)


@pytest.mark.parametrize("value", [KEY, AWKWARD, TOKEN], ids=["key", "awkward", "token"])
@pytest.mark.parametrize("form", spellings(KEY))
@pytest.mark.parametrize(
    "line",
    [
        "the store refused {}",
        "x={}y",
        '{{"value": "{}"}}',
        "s3://bucket/{}/rest",
        "\x1b[36m(worker pid=1)\x1b[0m {}",
        "{}",
        "({},{})",
    ],
)
def test_a_known_secret_is_found_in_every_form(value: str, form: str, line: str) -> None:
    spelt = spellings(value)[form]
    text = line.replace("{{", "{").replace("}}", "}").replace("{}", spelt)
    cleaned = REDACTOR.log(f"before\n{text}\nafter\n")
    for name, each in spellings(value).items():
        assert each not in cleaned, name
    assert cleaned.startswith("before\n")
    assert cleaned.endswith("\nafter\n")
    assert "<redacted" in cleaned


@pytest.mark.parametrize("before", ["", "u", "us", "user:", "a:b"])
@pytest.mark.parametrize("after", ["", "x", "yz", ":end"])
def test_a_secret_within_longer_base64_is_found(before: str, after: str) -> None:
    for value in (KEY, TOKEN):
        encoded = base64.b64encode(f"{before}{value}{after}".encode()).decode()
        cleaned = REDACTOR.log(f"header {encoded} end")
        # What is left at the borders decodes to less than a byte of the secret on either side.
        assert not any(
            base64.b64encode(value[at : at + 6].encode()).decode().rstrip("=")[:7] in cleaned
            for at in range(0, len(value) - 6, 3)
        )
        assert "<redacted:" in cleaned


def test_a_mask_names_the_secret() -> None:
    assert REDACTOR.text(f"key {KEY}") == "key <redacted:AWS_SECRET_ACCESS_KEY>"


def test_short_secrets_are_found_where_they_stand_alone() -> None:
    redactor = Redactor([Secret("PASSWORD", "abc12")])
    assert (
        redactor.text("it is abc12, abc123 or xabc12 not")
        == "it is <redacted:PASSWORD>, abc123 or xabc12 not"
    )
    assert redactor.text("(abc12)") == "(<redacted:PASSWORD>)"


@pytest.mark.parametrize(
    "value", ["redacted", "characters", "<redacted>", "text", "user", "e-mail", "phone number"]
)
def test_a_secret_that_reads_like_a_mask_does_not_break_masks(value: str) -> None:
    redactor = Redactor([Secret("SECRET", value)], Identity(hosts=["host", "number", "text"]))
    once = redactor.log(f"{value}, 13812345678 and a@b.cn at /home/x on host")
    assert redactor.log(once) == once


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("Authorization: Bearer abc.def-1", "Authorization: <redacted>"),
        (
            "{'authorization': 'Basic dXNlcjpwYXNz', 'Accept': '*/*'}",
            "{'authorization': '<redacted>', 'Accept': '*/*'}",
        ),
        ('"Authorization":"Bearer x1"', '"Authorization":"<redacted>"'),
        (r"{\"Authorization\": \"Bearer x1\", \"a\": 1}", r"{\"Authorization\": \"<redacted>\", \"a\": 1}"),
        ("(b'authorization', b'Bearer x1')", "(b'authorization', b'<redacted>')"),
        ('curl -H "Authorization: token x1y2" http://h/', 'curl -H "Authorization: <redacted>" http://h/'),
        ("x-amz-security-token:FwoGZXIvYXdzE", "x-amz-security-token:<redacted>"),
        ("Set-Cookie: session=1; Path=/", "Set-Cookie: <redacted>"),
        (
            "Authorization: AWS4-HMAC-SHA256 Credential=AK/s3/aws4_request, SignedHeaders=h, Signature=a1",
            "Authorization: <redacted>",
        ),
        ("sent bearer abcdef123456 to it", "sent bearer <redacted> to it"),
        ("a bearer authentication is wanted", "a bearer authentication is wanted"),
    ],
)
def test_headers_that_authorize(line: str, cleaned: str) -> None:
    assert Redactor().log(line) == cleaned


@pytest.mark.parametrize("separator", ["&", "&amp;", "\\u0026", "%26"])
def test_signatures_of_urls(separator: str) -> None:
    url = (
        f"https://s3.eu/bucket/key?X-Amz-Algorithm=AWS4-HMAC-SHA256{separator}X-Amz-Credential=AKIDEXAMPLE1%2F2026"
        f"{separator}X-Amz-Expires=900{separator}X-Amz-Security-Token=FwoGZXIvYXdzE{separator}X-Amz-Signature=0a1b2c3d4e5f"
    )
    cleaned = Redactor().log(f"GET {url} 403")
    for secret in ("AKIDEXAMPLE1", "FwoGZXIvYXdzE", "0a1b2c3d4e5f"):
        assert secret not in cleaned
    assert cleaned.startswith("GET https://s3.eu/bucket/key?X-Amz-Algorithm=AWS4-HMAC-SHA256")
    assert cleaned.endswith("X-Amz-Signature=<redacted> 403")


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("https://u:p@host:1/x", "https://<redacted>@host:1/x"),
        ("http://u:p@ss@proxy:8080", "http://<redacted>@proxy:8080"),
        ("git+https://ghp_0123456789@github.com/a/b", "git+https://<redacted>@github.com/a/b"),
        ("https://host/a@b?c=d@e", "https://host/a@b?c=d@e"),
        ("https://h/x?sig=abc%2Bdef%3D&sv=2", "https://h/x?sig=<redacted>&sv=2"),
        (
            "cdn?Policy=eyJTdGF0&Signature=ABCDEFGH12&Key-Pair-Id=K12345678",
            "cdn?Policy=<redacted>&Signature=<redacted>&Key-Pair-Id=<redacted>",
        ),
        ("AWS_SECRET_ACCESS_KEY=abcd/efgh next", "AWS_SECRET_ACCESS_KEY=<redacted> next"),
        ('"secretKey": "Zz9+x"', '"secretKey": "<redacted>"'),
        ("password: 'hunter2'", "password: '<redacted>'"),
        ("accessKeyId=ABCDEFGH", "accessKeyId=<redacted>"),
        ("--token abc123def --x", "--token <redacted> --x"),
        ("token=0123456789abcdef0", "token=<redacted>"),
        ("using hf_abcdefghijklmnopqrstuvwx now", "using <redacted> now"),
        ("AKIAIOSFODNN7EXAMPLE was used", "<redacted> was used"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl.", "jwt <redacted>."),
    ],
)
def test_credentials_by_their_shape(line: str, cleaned: str) -> None:
    assert Redactor().log(line) == cleaned


def test_blocks_of_private_keys() -> None:
    assert Redactor().text(f"a\n{PEM}\nb") == "a\n<redacted:private key>\nb"
    escaped = json.dumps({"key": PEM, "other": 1})
    assert json.loads(Redactor().text(escaped)) == {"key": "<redacted:private key>", "other": 1}
    prefixed = "".join(f"(pid=7) {line}\n" for line in PEM.splitlines())
    assert "MIIE" not in Redactor().log(prefixed)


def test_a_key_block_that_never_ends_swallows_only_key_lines() -> None:
    cut = "\n".join(PEM.splitlines()[:4])
    cleaned = Redactor().log(f"a\n{cut}\nstep 3: loss 2.5, 10 tokens\nb c\n")
    assert "MIIE" not in cleaned
    assert cleaned.endswith("step 3: loss 2.5, 10 tokens\nb c\n")
    assert drop_keys(f"{cut}\n", inside=False)[1]


def test_a_key_block_may_arrive_in_pieces() -> None:
    lines = f"a\n{PEM}\nb\n".splitlines(keepends=True)
    for at in range(1, len(lines)):
        stream = LogStream(Redactor())
        cleaned = stream.feed("".join(lines[:at])) + stream.feed("".join(lines[at:]))
        assert "MIIE" not in cleaned
        assert cleaned.startswith("a\n")
        assert cleaned.endswith("b\n")


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("/home/liming/x/y.py", "~/x/y.py"),
        ("at /home/liming.", "at ~."),
        ("/home/liming2/x", "/home/<user>/x"),
        ("/home/wang/x", "/home/<user>/x"),
        ("/Users/wang fang", "/Users/<user> fang"),
        (r"\/home\/liming\/x", r"~\/x"),
        ("file:///home/liming/a", "file://~/a"),
        ("?path=%2Fhome%2Fliming%2Fa", "?path=~%2Fa"),
        ("/mnt/home2/liming", "~"),
        ("/data/liming/corpus", "/data/<user>/corpus"),
        ("/data/liming-old/corpus", "/data/liming-old/corpus"),
        ("~liming/x", "~<user>/x"),
        ("liming@node:1", "<user>@node:1"),
        ('"user": "liming"', '"user": "<user>"'),
        ("gpu-07.ward:8265 and gpu-07", "<host>:8265 and <host>"),
        ("gpu-071 my-gpu-07", "gpu-071 my-gpu-07"),
        ("\x1b[32mliming@gpu-07\x1b[0m", "<user>@<host>"),
        ("s3://bucket/home/wang", "s3://bucket/home/wang"),
    ],
)
def test_names_of_user_and_machine(line: str, cleaned: str) -> None:
    assert REDACTOR.log(line) == cleaned


def test_accounts_without_a_person_stay() -> None:
    redactor = Redactor((), Identity(homes=["/root"], users=["root", "ray"], hosts=["localhost", "h"]))
    line = "/tmp/ray/session and /site-packages/ray/_private on localhost, /mnt/root/x, h"
    assert redactor.log(line) == line
    assert redactor.log("/root/x and /root") == "~/x and ~"


def test_an_empty_home_is_no_home() -> None:
    assert Redactor((), Identity(homes=["/", ""])).log("/a/b c/d") == "/a/b c/d"


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("mail li.ming+x@hospital.com.cn!", "mail <e-mail>!"),
        ("邮箱zhang@qq.com", "邮箱<e-mail>"),
        ("u=li%40qq.com&x", "u=<e-mail>&x"),
        ("11010519491231002X", "<ID number>"),
        ("号110105194912310021。", "号<ID number>。"),
        ("old 110105491231002 one", "old <ID number> one"),
        ("电话13812345678转1", "电话<phone number>转1"),
        ("+86 138-1234-5678, 8613812345678", "<phone number>, <phone number>"),
        ("memory=17179869184", "memory=17179869184"),
        ("17179869184 bytes", "17179869184 bytes"),
        ("'total': 17179869184", "'total': 17179869184"),
        ("0.13812345678", "0.13812345678"),
        ("a13812345678b x_13812345678", "a13812345678b x_13812345678"),
        ("1763856000123 1763856000", "1763856000123 1763856000"),
        ("sha256:1101051949123100211234", "sha256:1101051949123100211234"),
        ("ray==2.60.0 pkg@1.2.3 a@b", "ray==2.60.0 pkg@1.2.3 a@b"),
    ],
)
def test_persons(line: str, cleaned: str) -> None:
    assert Redactor().log(line) == cleaned


@pytest.mark.parametrize(
    "spelt",
    [
        RECORD,
        json.dumps(RECORD)[1:-1],
        json.dumps(json.dumps(RECORD))[3:-3],
        repr(RECORD.encode())[2:-1],
        quote(RECORD),
        "한국어로 쓰인 환자의 기록입니다 오늘",
        "ニカゲツマエカラノドノイタミガアリマス",
    ],
    ids=["characters", "json", "json twice", "bytes", "url", "korean", "kana"],
)
def test_text_of_records_in_logs(spelt: str) -> None:
    cleaned = Redactor().log(f"ValueError: bad value {spelt!s} at 3\n")
    assert cleaned.startswith("ValueError: bad value <text ")
    assert "characters>" in cleaned
    assert cleaned.endswith(" at 3\n")
    assert not any(character >= "\u2e80" for character in cleaned)
    assert "\\u60a3" not in cleaned
    assert "%E6" not in cleaned


def test_short_names_stay_and_configuration_keeps_its_text() -> None:
    line = "the source 内科学.txt of 科室 心内科 is empty"
    assert Redactor().log(line) == line
    prompt = "你是一名经验丰富的中医医生，请用通俗的语言回答患者的问题。"
    assert Redactor().text(prompt) == prompt


def test_the_length_of_a_text_is_told() -> None:
    assert Redactor().log("x 一二三四五六七八九十一二三 y") == "x <text 13 characters> y"
    assert Redactor().log("x 一二三四五六七八九十一二 y") == "x 一二三四五六七八九十一二 y"


HARMLESS = """\
2026-11-22 23:27:16,012 INFO zhongjing.job step 10 of 200: loss 5.123, 12345.6 tokens/s, eta 80 s
Traceback (most recent call last):
  File "/usr/lib/python3.11/site-packages/ray/train/v2/api.py", line 77, in fit
    raise TrainingFailedError(f"rank {rank}: {error}")
zhongjing.errors.TrainingError: s3://zhongjing/local/tiny/ppo/48217325c8f1c7d8: the loss is not finite
TOKENIZERS_PARALLELISM=false max_new_tokens=256 pad_token='<pad>' eos_token: </s> tokens: 12345678
E1122 23:27:15.333693 s3api.go:29 InvalidAccessKeyId: The key does not exist, tried at 10.0.0.7:8333
(raylet) 7d77c7b1c6048e25b13426874e63885348a0104260b8ce4f1974c817 object_store_memory: 209715200
http://127.0.0.1:8265/api/jobs/?limit=10&sort=time s3://bucket/a@b/c
sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  model.safetensors
password: wrong, token expired, no credentials were given; secret=None api_key=null
uuid 123e4567-e89b-12d3-a456-426614174000 pid 1234567 fd 12 cookies are off
"""


def test_nothing_else_is_changed() -> None:
    assert REDACTOR.log(HARMLESS) == HARMLESS
    assert REDACTOR.text(HARMLESS) == HARMLESS


def test_twice_is_once() -> None:
    pool = [
        *spellings(KEY).values(),
        *spellings(AWKWARD).values(),
        *HARMLESS.split(),
        *(
            "Authorization: Bearer ",
            "https://u:p@",
            "password=",
            "token=",
            "?sig=",
            "&Signature=",
            "'",
            '"',
            "\\",
        ),
        *(
            "/home/liming",
            "/home/wang/",
            "liming@",
            "gpu-07",
            "a@b.cn",
            "13812345678",
            "11010519491231002X",
            "%2F",
        ),
        *(
            RECORD,
            "短",
            "文字",
            json.dumps(RECORD),
            "<redacted>",
            "<",
            ">",
            "<text 5 characters>",
            "\n",
            " ",
            ":",
            "=",
        ),
        *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "MIIEpAIBAAKCAQEAMIIE"),
    ]
    dice = random.Random(7)
    for _ in range(1500):
        text = "".join(dice.choices(pool, k=dice.randint(1, 12)))
        once = REDACTOR.log(text)
        assert REDACTOR.log(once) == once, text
        assert KEY not in once
        configured = REDACTOR.text(text)
        assert REDACTOR.text(configured) == configured, text


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 250_000, "a-" * 125_000, "患" * 250_000, "%E6" * 80_000, "\\u60a3 " * 30_000),
        *("http://" * 35_000, "@" * 250_000, "1381234567" * 25_000, "a.b@" * 60_000, "password" * 30_000),
        *('"' * 250_000, "/home/" * 40_000, "token = " * 30_000, "Authorization: " * 15_000),
    ],
    ids=lambda text: text[:12],
)
def test_a_long_line_takes_no_longer_than_many_short_ones(text: str) -> None:
    began = time.process_time()
    REDACTOR.log(text)
    assert time.process_time() - began < 8.0


def test_other_line_ends_hide_nothing() -> None:
    for end in ("\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"):
        cleaned = Redactor().log(
            f"Authorization: Bearer{end} abc.def-1\nx{end}token=0123456789abcdef0{end}y\n"
        )
        assert "0123456789abcdef0" not in cleaned
        assert "abc.def-1" not in cleaned or end == "\r"


def test_a_cut_line_does_not_end_within_a_secret() -> None:
    for at in range(1, len(KEY)):
        cleaned = LogStream(REDACTOR).feed("x" * 9000 + " " + KEY[:at], cut=True)
        assert KEY[:at] not in cleaned.removesuffix("<the rest of the line is cut>\n") or at == 1
        assert cleaned.endswith("<the rest of the line is cut>\n")
