"""What the driver makes before the workers start: the base, its tokenizer, the token cache.

Everything made here is stored once under a key of its own and found again by the next attempt.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zhongjing.codes import model as codes
from zhongjing.config.keys import digest, tokenizer_sources
from zhongjing.config.stages import AnySettings, PpoSettings, Stage
from zhongjing.data.build import build_token_cache
from zhongjing.data.corpus import corpus_texts
from zhongjing.data.losses import data_warnings
from zhongjing.data.sentencepiece_model import CONVERSION
from zhongjing.data.tasks import encode_by
from zhongjing.data.templates import CHATML_TEMPLATE, ensure_chat_template, own_template
from zhongjing.data.tokenizer_folder import read_tokenizer
from zhongjing.errors import ConflictError, DataError
from zhongjing.model.adapters import check_adapter, read_adapter
from zhongjing.model.base import (
    check_max_length,
    check_same_tokenizer,
    check_vocabulary,
    load_config,
    make_tiny_base,
    set_positions,
    skeleton,
)
from zhongjing.model.delta import merge_delta
from zhongjing.model.tokenizer import padding_id, save_tokenizer
from zhongjing.model.weights import WeightReader
from zhongjing.storage.artifacts import MADE
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import StageInput, StageManifest, StageRequest
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.job.folders import Folders
from zhongjing.train.job.ray_tasks import connect
from zhongjing.train.job.worker_config import Prepared
from zhongjing.train.quality_warnings import reward_warnings

logger = logging.getLogger(__name__)

BASE = "base"
Report = Callable[[str, float], None]


def prepare(
    request: StageRequest, store: ObjectStore, layout: Layout, scratch: Path, report: Report
) -> Prepared:
    """Prepares a stage.

    Args:
        request: what the job was asked to do.
        store: the object store.
        layout: names of the pipeline's objects.
        scratch: local folder of this attempt.
        report: is told what is being done and how much of it is done, 0 to 1.

    Raises:
        DataError: the base, an adapter or the data cannot be used; MissingInputError where one is not there.
        StorageError: the object store refused or went away.
    """
    return _Preparation(request, store, layout, scratch, report).run()


@dataclass
class _Preparation:
    request: StageRequest
    store: ObjectStore
    layout: Layout
    scratch: Path
    report: Report
    folders: Folders = field(init=False)
    fetching: str = ""

    def __post_init__(self) -> None:
        # Beside the attempts' folders, so that the next attempt on this node finds what is there.
        self.folders = Folders(
            self.store, self.scratch.parent, lambda fraction: self.report(self.fetching, fraction)
        )

    def _fetching(self, message: str) -> None:
        """Says what the downloads that follow are."""
        self.fetching = message
        self.report(message, 0.0)

    def run(self) -> Prepared:
        request = self.request
        settings = request.document.spec.stages.get(request.stage)
        assert settings is not None, "the request's document has the request's stage"
        inputs = {item.role: item for item in request.inputs}
        reference, revision = self._start(inputs["from"])
        self._fetching("fetching the model to start from")
        local = self.folders.outline(reference, revision)
        under = self.folders.base_of(local)
        if under is not None and request.stage is not Stage.PPO:
            raise DataError(
                f"{request.stage} starts from a full model, this is an adapter",
                code=codes.NOT_A_FULL_MODEL,
                where=reference,
            )
        base = reference if under is None else under
        base_local = local if under is None else self.folders.outline(under)
        reward = inputs["reward"].uri if "reward" in inputs else None
        self._check_base(base_local, settings)
        if under is not None:
            check_same_tokenizer(local, base_local)
            check_adapter(read_adapter(local), skeleton(base_local))
        if reward is not None:
            self._check_reward(reward, base, base_local, policy_is_adapter=under is not None)
        judged = self._manifest_of(reward)
        doubts = self._check_accuracy(settings, reward, judged)
        extra = judged.extra if judged is not None else {}
        tokenizer, tokenizer_local = self._tokenizer(base, base_local)
        cache = build_token_cache(
            self.store,
            self.layout,
            request.document,
            request.stage,
            request.sources,
            tokenizer_local,
            self.report,
            self.layout.stage(request.stage, request.key).quarantine,
            self.scratch,
            encode_by(connect),
        )
        return Prepared(
            base=base,
            base_revision=revision if under is None else None,
            adapter=None if under is None else reference,
            reward=reward,
            reward_mean=extra.get("rewardMean"),
            reward_std=extra.get("rewardStd"),
            tokenizer=tokenizer,
            tokens=cache.uri,
            counts=tuple(cache.counts),
            warnings=(*doubts, *data_warnings(request.stage, settings, cache.counts)),
        )

    def _check_base(self, base_local: Path, settings: AnySettings) -> None:
        """Finds on the driver, in seconds, what would end every worker after minutes."""
        config = load_config(base_local)
        where = f"spec.stages.{self.request.stage.value}"
        if isinstance(settings, PpoSettings):
            # How much room the prompts leave is known when they are tokens (ppo.program).
            check_max_length(
                config, settings.max_new_tokens, field="maxNewTokens", where=f"{where}.maxNewTokens"
            )
        else:
            check_max_length(config, settings.max_length, where=f"{where}.maxLength")
        check_vocabulary(base_local, config)
        WeightReader(base_local).close()  # opens every file: a missing or cut one is found here

    def _start(self, start: StageInput) -> tuple[str, str | None]:
        """Reference and revision of the model to start from; a base that has to be made is made here."""
        base = self.request.document.spec.base
        if start.uri != BASE:
            return start.uri, None
        positioned = base.max_positions is not None or base.rope_scaling is not None
        if base.uri is not None and not positioned:
            return base.uri, base.revision
        uri = self.layout.base(start.key)
        if self.store.exists(f"{uri}/{MADE}"):
            return uri, None
        folder = self.scratch / "base"
        shutil.rmtree(folder, ignore_errors=True)
        if base.tiny is not None:
            self.report("making the tiny base and its tokenizer", 0.0)
            template = base.chat_template or CHATML_TEMPLATE
            make_tiny_base(
                folder, base.tiny, self._tokenizer_texts(), self.request.document.spec.seed, template
            )
        elif base.uri is not None:
            # A copy, so that what is handed on to transformers and to later stages says what it is.
            self._fetching("copying the base, to change its positions")
            shutil.copytree(
                self.folders.local(base.uri, base.revision),
                folder,
                copy_function=_link_or_copy,
                ignore=shutil.ignore_patterns(".*"),
            )
        else:
            assert base.delta is not None, "validation left one way to name a base"
            assert base.root is not None, "validation left one way to name a base"
            rule = base.rule_of_delta
            assert rule is not None, "validation refused a delta of an unknown rule"
            self._fetching("fetching the published delta")
            delta = self.folders.local(base.delta)
            self._fetching("fetching the root of the delta")
            merge = merge_delta(
                delta,
                self.folders.local(base.root),
                folder,
                rule,
                lambda fraction: self.report("adding the published delta to its root", fraction),
            )
            self.report(
                f"merged by rule {rule}: perplexity {merge.perplexity:.4g} a token on plain Chinese", 1.0
            )
        if positioned:
            set_positions(folder, base.max_positions, base.rope_scaling)
        self._store_once(folder, uri)
        return uri, None

    def _tokenizer_texts(self) -> Iterator[str]:
        frozen = {source.name: source for source in self.request.sources}
        for source in tokenizer_sources(self.request.document):
            if source.name in frozen:
                yield from corpus_texts(self.store, source, frozen[source.name])

    def _tokenizer(self, base: str, base_local: Path) -> tuple[str, Path]:
        """Reference and local folder of the tokenizer with the chat template and the padding in use.

        Where they are not the tokenizer's own it is stored with them, and so is what was made of a
        sentencepiece model: what is trained on, served and scored is one tokenizer.
        """
        tokenizer, otherwise = read_tokenizer(base_local)
        own = own_template(tokenizer)
        template = ensure_chat_template(tokenizer, self.request.document.spec.base.chat_template)
        if own and own != template:
            said = "base.chatTemplate is used in place of the tokenizer's chat template"
            logger.info("%s (%s)", said, base)
            self.report(said, 0.0)
        padding = padding_id(tokenizer)
        if own == template and tokenizer.pad_token_id == padding and not otherwise:
            return base, base_local
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
        fields = {"base": base, "template": template, "padding": padding, "form": CONVERSION}
        uri = self.layout.base(f"{digest(fields)}-tokenizer")
        if not self.store.exists(f"{uri}/{MADE}"):
            folder = self.scratch / "tokenizer"
            shutil.rmtree(folder, ignore_errors=True)
            save_tokenizer(tokenizer, folder, pieces=base_local if otherwise else None)
            self._store_once(folder, uri)
        return uri, self.folders.outline(uri)

    def _store_once(self, folder: Path, uri: str) -> None:
        """Uploads a folder; its mark comes last. Another job that made the same first is as good."""
        files = self.store.upload_folder(folder, uri)
        mark = json.dumps([file.model_dump(mode="json") for file in files])
        with suppress(ConflictError):
            self.store.put(f"{uri}/{MADE}", mark.encode(), if_none_match=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _check_reward(self, reward: str, base: str, base_local: Path, *, policy_is_adapter: bool) -> None:
        local = self.folders.outline(reward)
        reward_base = self.folders.base_of(local)
        if reward_base is None:
            raise DataError(
                "the reward model is no PEFT adapter with a head",
                code=codes.NO_REWARD_HEAD,
                where=reward,
                remedy="PPO keeps all four roles on one base: give the adapter that the rm stage made",
            )
        if reward_base != base:
            remedy = (
                "train policy and reward model from the same base"
                if policy_is_adapter
                else "PPO keeps all four roles on one base: set spec.stages.sft.tuning: lora"
            )
            raise DataError(
                f"the reward model stands on {reward_base}, the policy on {base}",
                code=codes.ADAPTER_MISMATCH,
                where=reward,
                remedy=remedy,
            )
        adapter = read_adapter(local)
        adapter.reward_head(where=reward)
        check_same_tokenizer(local, base_local)
        check_adapter(adapter, skeleton(base_local))

    def _manifest_of(self, reward: str | None) -> StageManifest | None:
        """The manifest of a reward model that a stage made: what it measured on held-out answers."""
        if reward is None or not reward.startswith("s3://") or not reward.endswith("/model"):
            return None
        return self.store.find_record(StageLayout(reward.removesuffix("/model")).manifest, StageManifest)

    def _check_accuracy(
        self, settings: AnySettings, reward: str | None, judged: StageManifest | None
    ) -> list[str]:
        """Warnings on the reward model that PPO is about to follow.

        Raises:
            DataError: it is worse than ``minRewardAccuracy``.
        """
        if not isinstance(settings, PpoSettings) or reward is None:
            return []
        metrics = judged.metrics if judged is not None else {}
        least, accuracy = settings.min_reward_accuracy, metrics.get("accuracy")
        if accuracy is None:
            said = "the reward model's accuracy is not known (no rm stage made it, or nothing was held out)"
            return [said] if least is None else [f"{said}: minRewardAccuracy cannot be held against it"]
        if least is not None and accuracy < least:
            pairs = f"{metrics['pairs']:.0f} " if "pairs" in metrics else ""
            raise DataError(
                f"the reward model's accuracy is {accuracy:.3f} on its {pairs}held-out pairs, "
                f"minRewardAccuracy is {least:g}",
                code=codes.WEAK_REWARD_MODEL,
                where="spec.stages.ppo.minRewardAccuracy",
            )
        return reward_warnings(metrics)


def _link_or_copy(source: str, target: str) -> str:
    """A hard link where the file system has them: weights are only read."""
    real = Path(source).resolve()  # a hub snapshot consists of symbolic links
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
    return target
