"""From the options of ``submit`` to a run: one path for a work directory and for a cluster.

Resolve, check what can be checked here, open the target, place local files, prepare, check whether it fits,
apply, watch. What the two targets do differently are the methods of :class:`LocalSubmission` and
:class:`ClusterSubmission`. What only a right document needs is imported when it is needed: a wrong one is
told of at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml

from zhongjing.cli.commands.config import as_yaml
from zhongjing.cli.console import Console
from zhongjing.cli.display.rehearsal import forecast_lines, forecast_object
from zhongjing.cli.errors import FAILED, OK
from zhongjing.cli.example import is_example, parse, with_examples, with_uris
from zhongjing.cli.options import DEFAULT_RECIPE, StageTarget
from zhongjing.cli.target import ClusterTarget, LocalTarget, Target
from zhongjing.cli.uploads import PlannedStore, Uploads, announcer, plan_uploads, send
from zhongjing.cli.watch import attend
from zhongjing.codes.cluster import FORBIDDEN
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.codes.storage import BUCKET_NOT_FOUND
from zhongjing.config.commands import Commands
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import UserDocument, recipe_origin, resolve
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, ConfigError, ConflictError, StorageError
from zhongjing.pipeline import graph
from zhongjing.pipeline.freeze import absolute
from zhongjing.pipeline.plan import Plan, StagePlan, frozen_sources, missing_input
from zhongjing.pipeline.prepare import Forecast, Prepared, in_progress, prepare
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import DesiredState

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.session import KubernetesSession
    from zhongjing.pipeline.fit import TermsOf

_ATTEMPTS = 5  # to apply while others change the same pipeline

_S = TypeVar("_S", bound=Session)


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        user: the document, overrides applied.
        is_default: no document was named: the recipe that is run then is meant, and no other document.
        stage: the stage asked for, or all; None: what the document says.
        rerun: stages to run again.
        refresh_data: whether to list the sources again.
    """

    user: UserDocument
    is_default: bool = False
    stage: StageTarget | None = None
    rerun: tuple[Stage, ...] = ()
    refresh_data: bool = False

    def stages(self, document: TrainingPipeline) -> list[Stage]:
        """The stages asked for; none: what the document says."""
        if self.stage is None:
            return []
        return document.spec.stages.present() if self.stage is StageTarget.ALL else [Stage(self.stage.value)]


def submission(order: Order, target: Target, console: Console) -> Submission[Any]:
    """The submission of a document to a target.

    Raises:
        ConfigError, DataError: the document, its examples or the stages asked for are wrong.
    """
    if isinstance(target, ClusterTarget):
        return ClusterSubmission(order, target, console)
    return LocalSubmission(order, target, console)


class Submission(ABC, Generic[_S]):
    """One document on its way to a target.

    Args:
        order: what was asked for.
        console: where to tell of it.

    Raises:
        ConfigError, DataError: the document, its examples or the stages asked for are wrong.
    """

    tokenizes: bool
    """Whether a dry run counts tokens: a client of a cluster may have no torch."""

    def __init__(self, order: Order, console: Console) -> None:
        self.order = order
        self.console = console
        self.user = order.user
        self.document = resolve(self.user)
        self.name = self.document.name
        self.notes: list[str] = []
        graph.check(self.document)
        self.targets = graph.targets(self.document, order.stages(self.document))
        graph.targets(self.document, order.rerun)
        for source in self.document.spec.sources:
            if is_example(source.place):
                parse(source.place, f"spec.sources.{source.name}.{source.place_field}")

    def run(self, *, wait: bool, wait_for_input: bool) -> int:
        """Applies the document and watches the run; returns the exit code.

        Raises:
            ConfigError, DataError: bad input; or the API server refuses the document.
            BackendError, StorageError: the target cannot be reached.
        """
        if self.order.is_default:
            self.console.say(f"no document is given (-f): runs the recipe {DEFAULT_RECIPE} on example data")
        self._check_here(dry_run=False)
        with ExitStack() as stack:
            session = self._open(dry_run=False)
            assert session is not None, "only a dry run makes no work directory"
            stack.enter_context(session)
            self._refuse_another_document(session)
            user = self._place_files(session, stack, dry_run=False)
            self._say(self.notes)
            self._send_files(session)
            for attempt in range(1, _ATTEMPTS + 1):
                prepared = self._prepare(session, user, dry_run=False)
                changed = prepared.desired is not prepared.previous
                doubts = self._check_fit(session, _runs(prepared.forecasts)) if changed else []
                if changed and attempt == 1:
                    self._warn_of_data(_runs(prepared.forecasts))
                try:
                    desired = session.apply(prepared.desired)
                    break
                except ConflictError:
                    # Another command wrote first; what it wrote counts when this one is prepared again.
                    if attempt == _ATTEMPTS:
                        raise
                except KeyboardInterrupt:
                    # Before it was applied there is nothing to stop; but it may just have been.
                    if not _is_applied(session, prepared.desired):
                        raise
                    return attend(session, prepared.desired, self.console, interrupted=True)
            self._say([*doubts, *prepared.notes])
            if not changed:
                self.console.say(f"{self.name}: runs already, attached to it")
            self.console.say_lines([*forecast_lines(prepared.forecasts), *self._hints(session)])
            return attend(session, desired, self.console, wait=wait, wait_for_input=wait_for_input)

    def dry_run(self, *, as_text: bool) -> int:
        """Prints the complete document and what would run; starts no job, uploads and applies nothing.

        Where nothing was ever run, everything would, and no service is started to find that out. Returns the
        exit code: 1 where a stage would be refused here or would stop over its records.
        """
        refused = False
        self._check_here(dry_run=True)
        with ExitStack() as stack:
            session = self._open(dry_run=True)
            if session is None:
                forecasts = self._first_forecasts()
                data, text = _as_shown(self.document)
            else:
                stack.enter_context(session)
                self._refuse_another_document(session)
                user = self._place_files(session, stack, dry_run=True)
                prepared = self._prepare(session, user, dry_run=True)
                forecasts = prepared.forecasts
                self.notes += prepared.notes
                data, text = self._shown(session, prepared)
            runs = _runs(forecasts)
            try:
                self.notes += self._check_fit(session, runs)
            except ConfigError as error:
                # The document may be meant for another machine: it is shown all the same.
                self.notes.append(f"would be refused here: {error.message}")
                refused = True
        from zhongjing.cli.preflight.rehearsal import WOULD_STOP, dry_run_data

        lines, counts = dry_run_data(self.document, runs, origin=self.user.origin, tokenize=self.tokenizes)
        if as_text:
            for line in [*(f"note: {note}" for note in self.notes), *forecast_lines(forecasts), *lines]:
                self.console.raw(f"# {line}\n")
            self.console.raw(text)
        else:
            plan = [forecast_object(each) for each in forecasts]
            self.console.result({"document": data, "plan": plan, "notes": self.notes, "data": counts})
        return FAILED if refused or any(WOULD_STOP in line for line in lines) else OK

    # What the targets do differently

    @abstractmethod
    def _check_here(self, *, dry_run: bool) -> None:
        """Checks what this machine can tell before any service is asked; adds notes.

        Raises:
            ConfigError, DataError: the document cannot run.
        """

    @abstractmethod
    def _open(self, *, dry_run: bool) -> _S | None:
        """The session of the target, made if need be; None: a dry run where nothing was ever run.

        Raises:
            ConfigError, BackendError: the target cannot be made or reached.
        """

    @abstractmethod
    def _place_files(self, session: _S, stack: ExitStack, *, dry_run: bool) -> UserDocument:
        """The document as the target can read it, local files by their place there; adds notes.

        Args:
            session: the target.
            stack: keeps temporary files until the document is applied.
            dry_run: nothing is sent.
        """

    def _send_files(self, session: _S) -> None:
        """Sends what :meth:`_place_files` found, unless :meth:`_prepare` does it."""

    def _prepare(self, session: _S, user: UserDocument, *, dry_run: bool) -> Prepared:
        """What would be applied; as :func:`zhongjing.pipeline.prepare.prepare`."""
        refused = self._refused_store(session)
        prepared = prepare(
            session,
            user,
            stages=self.order.stages(self.document),
            rerun=self.order.rerun,
            refresh_data=self.order.refresh_data,
            upload=not dry_run,
            on_upload=announcer(self.console),
            reads_store=refused is None,
        )
        if refused is not None:
            prepared.notes.append(f"no forecast, the object store cannot be read: {refused.message}")
        return prepared

    def _refused_store(self, session: _S) -> BackendError | None:
        """Why this user may not read the target's object store; None: it may be read."""
        return None

    @abstractmethod
    def _check_fit(self, session: _S | None, stages: list[Stage]) -> list[str]:
        """Plans the memory of stages that will run; returns notes. Raises ConfigError: one cannot fit."""

    @abstractmethod
    def _shown(self, session: _S, prepared: Prepared) -> tuple[dict[str, Any], str]:
        """The document that a dry run prints, as data and as YAML."""

    def _hints(self, session: _S) -> list[str]:
        """What else is told before the run is watched."""
        return []

    # What they share

    def _check_files(
        self, stages: list[Stage], *, known: Collection[str] = (), empty_store: bool = False
    ) -> None:
        """Checks models and sources of stages; adds notes. Raises ConfigError, DataError."""
        from zhongjing.cli.preflight.models import check_models
        from zhongjing.cli.preflight.sources import check_sources

        self.notes += check_models(self.document, stages)
        self.notes += check_sources(self.document, stages, known=known, empty_store=empty_store)

    def _first_forecasts(self) -> list[Forecast]:
        """What becomes of each stage where nothing was ever run.

        Raises:
            MissingInputError: a stage that is only needed was never made.
        """
        plan: Plan = {
            stage: StagePlan(
                stage,
                stage in self.targets,
                graph.needs(self.document, stage),
                (),
                None,
                {},
                {},
                made=() if stage is Stage.CONSTRUCT else tuple(graph.made_sources(self.document, stage)),
            )
            for stage in graph.closure(self.document, self.targets)
        }
        missing = missing_input(plan, {}, self.name)
        if missing is not None:
            raise missing
        return [Forecast(stage, "run", "was never run", None) for stage in plan]

    def _refuse_another_document(self, session: Session) -> None:
        """Keeps the default recipe from taking the name of another document's run. Raises ConfigError."""
        there = session.desired(self.name) if self.order.is_default else None
        if there is None or there.origin == recipe_origin(DEFAULT_RECIPE):
            return
        made = f", from {there.origin}" if there.origin else ""
        raise ConfigError(
            f"no document is given, and the pipeline {self.name} was made from another document than the "
            f"recipe {DEFAULT_RECIPE}{made}",
            code=INVALID_OPTION,
            where="--file",
            remedy=f"name it with -f FILE, or take the one that the pipeline has: --pipeline {self.name}; "
            f"--recipe {DEFAULT_RECIPE} means the recipe",
        )

    def _warn_of_data(self, stages: list[Stage]) -> None:
        """Tells why stages would stop. It is a look at some records: the run goes on."""
        from zhongjing.cli.preflight.rehearsal import data_warnings

        self.console.say_lines(data_warnings(self.document, stages))

    def _say(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.console.say(f"note: {note}")


class LocalSubmission(Submission[Session]):
    """To a work directory of this machine."""

    tokenizes = True

    def __init__(self, order: Order, target: LocalTarget, console: Console) -> None:
        super().__init__(order, console)
        from zhongjing.backends.local.workdir import Workdir

        self.target = target
        self._was_applied = self.name in Workdir(target.workdir).pipelines()

    def _check_here(self, *, dry_run: bool) -> None:
        workdir = self.target.workdir
        if not self._was_applied:
            stages = [each.stage for each in self._first_forecasts()]
            self._check_files(stages, empty_store=not workdir.is_dir())
        if dry_run:
            return
        from zhongjing.backends.local.machine import check_disk

        check_disk(workdir)
        if not self._was_applied:
            self._check_fit(None, self.targets)

    def _open(self, *, dry_run: bool) -> Session | None:
        if dry_run:
            return self.target.open() if self.target.workdir.is_dir() else None
        self.console.say(f"{self.name}: runs in {self.target.workdir}")
        return self.target.open(create=True)

    def _place_files(self, session: Session, stack: ExitStack, *, dry_run: bool) -> UserDocument:
        if self._was_applied:
            # The pipeline has its own copy of the sources that it read before.
            known = () if self.order.refresh_data else self._frozen(session)
            self._check_files(self.targets, known=known)
        return with_examples(self.user, self.target.workdir / "example")

    def _prepare(self, session: Session, user: UserDocument, *, dry_run: bool) -> Prepared:
        try:
            return super()._prepare(session, user, dry_run=dry_run)
        except StorageError as error:
            from zhongjing.cli.preflight.sources import outside

            # The store of a local run has one bucket: another bucket is in another store.
            for source in self.document.spec.sources:
                if error.code is BUCKET_NOT_FOUND and error.where == source.place:
                    raise outside(source) from error
            raise

    def _check_fit(self, session: Session | None, stages: list[Stage]) -> list[str]:
        from zhongjing.cli.preflight.fit import check_machine, check_memory
        from zhongjing.pipeline.fit import reader

        check_machine(self.document, stages)
        store = session.store if session is not None else None
        return check_memory(self.document, stages, self._terms, reader(store))

    @cached_property
    def _terms(self) -> TermsOf:
        from zhongjing.cli.preflight.fit import terms_here

        return terms_here()

    def _shown(self, session: Session, prepared: Prepared) -> tuple[dict[str, Any], str]:
        # As it was written: a document with the paths of this work directory would be of no use elsewhere.
        uris = {
            source.name: source.place for source in self.document.spec.sources if is_example(source.place)
        }
        return _as_shown(with_uris(prepared.desired.document, uris))

    def _frozen(self, session: Session) -> set[str]:
        """Names of the sources that the pipeline goes on reading as they were when it first saw them."""
        previous = session.desired(self.name)
        if previous is None:
            return set()
        status = session.status(self.name)
        uris = {source.name: source.place for source in previous.document.spec.sources}
        frozen = frozen_sources(previous, status.sources if status is not None else ())
        return {
            source.name
            for source in self.document.spec.sources
            if source.name in frozen and uris.get(source.name) == absolute(source.place, Path.cwd())
        }


class ClusterSubmission(Submission["KubernetesSession"]):
    """To a release on a cluster: local files are uploaded, the TrainingPipeline is created or changed."""

    tokenizes = False

    def __init__(self, order: Order, target: ClusterTarget, console: Console) -> None:
        super().__init__(order, console)
        self.target = target
        self._uploads = Uploads(self.user)

    def _check_here(self, *, dry_run: bool) -> None:
        self._check_files(graph.closure(self.document, self.targets))

    def _open(self, *, dry_run: bool) -> KubernetesSession:
        session = self.target.open()
        if not dry_run:
            where = f"the namespace {session.namespace} (release {session.release.release})"
            self.console.say(f"{self.name}: runs in {where}")
        return session

    def _place_files(self, session: KubernetesSession, stack: ExitStack, *, dry_run: bool) -> UserDocument:
        self._uploads = plan_uploads(self.user, self.document, session.layout(self.name), stack)
        self.notes += self._uploads.notes
        if dry_run:
            self.notes += self._uploads.not_sent()
            if self._refused_store(session) is None:
                session.use(PlannedStore(session.store, self._uploads.files))
        return self._uploads.user

    def _send_files(self, session: KubernetesSession) -> None:
        if not self._uploads.files:
            return
        refused = self._refused_store(session)
        if refused is not None:
            raise BackendError(
                f"the local files of the document cannot be uploaded: {refused.message}",
                code=FORBIDDEN,
                where=refused.where,
                remedy="have the ClusterRole edit bound in the namespace (it holds all that is needed: "
                "services, secrets, pods/portforward), or name s3:// URIs, which need no upload",
            ) from refused
        send(session.store, self._uploads, self.console)

    def _prepare(self, session: KubernetesSession, user: UserDocument, *, dry_run: bool) -> Prepared:
        if self.order.refresh_data:
            self._refuse_refresh_under_way(session)
            user = user.holding(session.with_refresh(user))
        return super()._prepare(session, user, dry_run=dry_run)

    def _refused_store(self, session: KubernetesSession) -> BackendError | None:
        try:
            _ = session.store
        except BackendError as error:
            if error.code is FORBIDDEN:
                return error
            raise
        return None

    def _check_fit(self, session: KubernetesSession | None, stages: list[Stage]) -> list[str]:
        from zhongjing.backends.kubernetes.demand import WorkerMemory
        from zhongjing.cli.preflight.fit import check_memory
        from zhongjing.pipeline.fit import reader

        assert session is not None, "a cluster is asked for what its workers have"
        store = session.store if self._refused_store(session) is None else None
        terms_of = WorkerMemory(session.api, session.release).terms
        return check_memory(self.document, stages, terms_of, reader(store))

    def _shown(self, session: KubernetesSession, prepared: Prepared) -> tuple[dict[str, Any], str]:
        """What ``kubectl apply`` would take, if the API server takes it."""
        session.check(prepared.desired)
        wanted = session.render(prepared.desired)
        return wanted, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=110)

    def _hints(self, session: KubernetesSession) -> list[str]:
        return [f"Ray dashboard: {Commands(session.flags).line('dashboard')}"]

    def _refuse_refresh_under_way(self, session: KubernetesSession) -> None:
        there = session.desired(self.name)
        if there is not None and in_progress(there, session.status(self.name)):
            raise ConfigError(
                f"the pipeline {self.name} is running: its sources cannot be listed again",
                code=INVALID_OPTION,
                where="--refresh-data",
                remedy=f"wait for it, or stop it first: `zhongjing stop {self.name}`",
            )


def _is_applied(session: Session, desired: DesiredState) -> bool:
    there = session.desired(desired.pipeline)
    return there is not None and (there.uid, there.generation) == (desired.uid, desired.generation)


def _runs(forecasts: list[Forecast]) -> list[Stage]:
    return [each.stage for each in forecasts if each.action == "run"]


def _as_shown(document: TrainingPipeline) -> tuple[dict[str, Any], str]:
    return document.model_dump(mode="json", exclude_none=True), as_yaml(document)
