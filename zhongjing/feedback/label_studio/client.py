"""What of Label Studio's REST API is used, over plain HTTP.

Source: https://api.labelstud.io (projects, import, export, users), tried on 1.23.2. Tokens are the legacy
ones (``Authorization: Token``), which the community edition makes for each user.
"""

from __future__ import annotations

import json
from typing import Any

import urllib3

from zhongjing.codes import feedback as codes
from zhongjing.errors import BackendError, BackendUnavailableError

_SECONDS = 60.0
_BATCH = 500  # tasks a request


class Client:
    """One user's view of a server.

    Args:
        url: ``http://host:port``.
        token: the user's.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
        self._http = urllib3.PoolManager(timeout=_SECONDS, retries=False)

    def whoami(self) -> dict[str, Any]:
        """The user: ``id``, ``email``. Raises as :meth:`call` does."""
        found: dict[str, Any] = self.call("GET", "/api/current-user/whoami")
        return found

    def projects(self) -> dict[str, int]:
        """Ids by title of all projects that the user can see."""
        found: dict[str, int] = {}
        page = 1
        while True:
            answer = self.call("GET", f"/api/projects?page={page}&page_size=100")
            found |= {each["title"]: int(each["id"]) for each in answer["results"]}
            if answer.get("next") is None:
                return found
            page += 1

    def make_project(self, title: str, config: str, instruction: str) -> int:
        """Makes a project, and returns its id; the instruction is shown before the first task."""
        body = {
            "title": title,
            "label_config": config,
            "expert_instruction": instruction,
            "show_instruction": True,
            "maximum_annotations": 1,
            "show_skip_button": True,
        }
        return int(self.call("POST", "/api/projects", body)["id"])

    def add_tasks(self, project: int, tasks: list[dict[str, Any]]) -> None:
        """Adds tasks to a project."""
        for begin in range(0, len(tasks), _BATCH):
            self.call("POST", f"/api/projects/{project}/import", tasks[begin : begin + _BATCH])

    def export(self, project: int) -> list[dict[str, Any]]:
        """All tasks of a project with their annotations."""
        found: list[dict[str, Any]] = self.call(
            "GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true"
        )
        return found

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One request.

        Raises:
            BackendUnavailableError: no answer.
            BackendError: the token is refused (401), or the request is.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = self._http.request(method, f"{self.url}{path}", body=data, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise BackendUnavailableError(
                f"no answer ({type(error).__name__})", code=codes.LABEL_STUDIO_UNREACHABLE, where=self.url
            ) from error
        if answer.status == 401:
            raise BackendError("the token is refused", code=codes.TOKEN_REFUSED, where=self.url)
        if answer.status >= 400:
            # What it says may quote a task.
            raise BackendError(
                f"{method} {path.partition('?')[0]} was answered with {answer.status}",
                code=codes.LABEL_STUDIO_FAILED,
                where=self.url,
            )
        return json.loads(answer.data) if answer.data else None
