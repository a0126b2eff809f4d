"""What submit finds wrong with deltas, hub ids and chat templates before anything starts."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.published_bases import publish_ziya
from zhongjing.cli.preflight.deltas import shapes_of
from zhongjing.cli.preflight.models import check_models
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import resolve
from zhongjing.config.sources import DeltaRule
from zhongjing.config.stages import Stage
from zhongjing.data.templates import CHATML_TEMPLATE, PLAIN_TEMPLATE
from zhongjing.errors import ConfigError, DataError, ZhongjingError
from zhongjing.pipeline import graph

Change = Callable[[Path, Path], None]


def document(base: dict[str, Any], **settings: Any) -> TrainingPipeline:
    return resolve(
        {
            "metadata": {"name": "demo"},
            "spec": {
                "base": base,
                "sources": [{"name": "talks", "uri": "talks.jsonl", "kind": "dialogue"}],
                "stages": {"sft": {"data": [{"source": "talks"}], "maxLength": 64, **settings}},
            },
        }
    )


def refusal(base: dict[str, Any], **settings: Any) -> ZhongjingError:
    with pytest.raises(ZhongjingError) as caught:
        check_models(document(base, **settings), [Stage.SFT])
    return caught.value


# Deltas. The folders are published by the rules of IDEA-CCNL and LMSYS (tests/published_bases.py).


@pytest.fixture(scope="module", params=["fengshen", "fastchat"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    rule: DeltaRule = request.param
    made = publish_ziya(tmp_path_factory.mktemp(rule), rule, trained=False)
    return made.delta, made.root


@pytest.fixture
def copied(published: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A base whose folders may be changed: files are links until they are replaced."""
    for folder, name in zip(published, ("delta", "root"), strict=True):
        (tmp_path / name).mkdir()
        for file in folder.iterdir():
            (tmp_path / name / file.name).symlink_to(file)
    rule = published[0].parent.name.rstrip("0123456789")
    return {"delta": str(tmp_path / "delta"), "root": str(tmp_path / "root"), "deltaRule": rule}


def cut(file: Path) -> None:
    content = file.resolve().read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) - 100])


def replace(file: Path, content: str) -> None:
    file.unlink()
    file.write_text(content)


def weights(folder: Path) -> Path:
    return next(file for file in sorted(folder.iterdir()) if file.suffix in (".bin", ".safetensors"))


def rename_a_tensor(file: Path) -> None:
    """Written anew: the archive's sums would tell."""
    original = file.resolve()
    file.unlink()
    with zipfile.ZipFile(original) as archive, zipfile.ZipFile(file, "w") as changed:
        for entry in archive.namelist():
            changed.writestr(entry, archive.read(entry).replace(b"model.norm.weight", b"model.norn.weight"))


def test_a_published_delta_passes(copied: dict[str, Any]) -> None:
    assert check_models(document(copied), [Stage.SFT]) == []


def test_a_delta_found_by_a_relative_path_passes(
    copied: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_models(document({**copied, "delta": "delta", "root": "./root"}), [Stage.SFT]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda delta, root: (delta / "config.json").unlink(), "ModelNotFound: spec.base.delta"),
        (lambda delta, root: (root / "config.json").unlink(), "ModelNotFound: spec.base.root"),
        (lambda delta, root: cut(weights(root)), "UnusableModel: root/.*cut off or damaged"),
        (lambda delta, root: cut(weights(delta)), "UnusableModel: delta/.*cut off or damaged"),
        (lambda delta, root: weights(root).unlink(), "UnusableModel: root.*(missing|no weights)"),
        (lambda delta, root: rename_a_tensor(weights(root)), "DeltaMismatch: root: tensor model.norm.weight"),
        (lambda delta, root: (delta / "tokenizer.model").unlink(), "UnusableTokenizer: delta"),
    ],
    ids=["no-config", "no-root-config", "cut-root", "cut-delta", "no-weights", "tensor", "no-tokenizer"],
)
def test_what_a_merge_would_find_after_hours_is_found_before_anything_starts(
    copied: dict[str, Any], tmp_path: Path, change: Change, words: str
) -> None:
    for file in ("tokenizer.json", "vocab.json", "spiece.model"):
        (tmp_path / "delta" / file).unlink(missing_ok=True)
    change(tmp_path / "delta", tmp_path / "root")
    error = refusal(copied)
    told = f"{error.code.name}: {error}".replace(f"{tmp_path}/", "")
    assert re.match(words, told), told


def test_a_delta_longer_than_its_positions_is_refused(copied: dict[str, Any]) -> None:
    error = refusal(copied, maxLength=4096)
    assert error.code.name == "TooLongForModel"
    assert "spec.base.maxPositions: 4096" in (error.remedy or "")


def test_the_positions_of_another_root_do_not_count(copied: dict[str, Any], tmp_path: Path) -> None:
    config = json.loads((tmp_path / "root" / "config.json").read_text())
    replace(tmp_path / "root" / "config.json", json.dumps({**config, "max_position_embeddings": 16}))
    assert check_models(document(copied), [Stage.SFT]) == []


def test_positions_that_the_document_states_are_held_against_it() -> None:
    base = {"uri": "owner/name", "maxPositions": 2048}
    graph.check(document(base, maxLength=2048))
    with pytest.raises(ZhongjingError, match="2048 positions") as caught:
        graph.check(document(base, maxLength=2049))
    assert caught.value.remedy is not None
    assert "spec.base.maxPositions: 2049" in caught.value.remedy


def test_the_headers_of_safetensors_and_of_bin_files_tell_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.float16)}
    for name in ("bins", "safe", "cut"):
        (tmp_path / name).mkdir()
    torch.save({**tensors, "p": torch.nn.Parameter(torch.zeros(2, 2))}, tmp_path / "bins/pytorch_model.bin")
    save_file({**tensors, "p": torch.zeros(2, 2)}, tmp_path / "safe/model.safetensors")
    wanted = {"a.weight": (3, 5), "b": (7,), "p": (2, 2)}
    assert shapes_of(tmp_path / "bins") == shapes_of(tmp_path / "safe") == wanted
    whole = (tmp_path / "safe/model.safetensors").read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        (tmp_path / "cut/model.safetensors").write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut off or damaged"):
            shapes_of(tmp_path / "cut")


def test_a_bin_file_runs_nothing(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Harm()}))
    assert shapes_of(tmp_path) is None
    assert not (tmp_path / "touched").exists()


# Paths that are none


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("models/ziya/delta", "there is no folder models/ziya/delta in"),
        ("my model", "there is no folder my model in"),
        ("./gone", "there is no folder gone"),
    ],
)
@pytest.mark.parametrize("field", ["delta", "root", "uri", "from"])
def test_a_path_without_a_folder_is_told_as_a_path(
    reference: str, found: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if field in ("delta", "root"):
        base = {"delta": "owner/delta", "root": "owner/root", "deltaRule": "fastchat", field: reference}
    else:
        base = {"uri": reference if field == "uri" else "owner/name"}
    error = refusal(base, **({"from": reference} if field == "from" else {}))
    assert (error.code.name, error.where) == (
        "ModelNotFound",
        f"spec.stages.sft.{field}" if field == "from" else f"spec.base.{field}",
    )
    assert found in error.message


def test_a_hub_id_that_may_be_a_path_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"delta": "deltas/mine", "root": "huggyllama/llama-13b", "deltaRule": "fengshen"}
    assert check_models(document(base), [Stage.SFT]) == []
    (tmp_path / "deltas").mkdir()
    (note,) = check_models(document(base), [Stage.SFT])
    assert note.startswith("spec.base.delta: there is no folder deltas/mine here")


# Chat templates


@pytest.mark.parametrize(
    "template",
    [
        CHATML_TEMPLATE,
        PLAIN_TEMPLATE,
        "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{% generation %}{{ m.content }}</s>"
        "{% endgeneration %}{% endif %}{% endfor %}",
        "{{ strftime_now('%d %b') }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    ],
    ids=["chatml", "plain", "generation-tag", "transformers-names"],
)
def test_templates_that_a_job_takes_pass(template: str) -> None:
    assert check_models(document({"uri": "owner/name", "chatTemplate": template}), [Stage.SFT]) == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}", "does not parse: line 1"),
        ("{{ messages[0].content.nothing() }}", "fails on a question with its answer: UndefinedError"),
        ("{{ raise_exception('no') }}", "fails on a question"),
        ("{% for m in messages %}{{ m.content | trim | truncate(4) }}</s>{% endfor %}", "cuts or rewrites"),
        ("{% for m in messages %}{{ m.content | e }}</s>{% endfor %}", "cuts or rewrites"),
        (
            "{% for m in messages %}{{ m.content }}</s>{% endfor %}{{ 'A' if add_generation_prompt }}",
            "prompt",
        ),
    ],
)
def test_a_template_that_every_dialogue_would_fail_is_refused_at_once(template: str, words: str) -> None:
    error = refusal({"uri": "owner/name", "chatTemplate": template})
    assert isinstance(error, ConfigError)
    assert (error.code.name, error.where) == ("InvalidTemplate", "spec.base.chatTemplate")
    assert words in error.message
