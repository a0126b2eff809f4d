"""The weight of the KL penalty: fixed, or steered towards a target."""

from __future__ import annotations

from typing import Any


class KlController:
    """Proportional controller of Ziegler et al. 2019 (section 2.2), its error clipped to +-0.2.

    Args:
        coefficient: first weight of the penalty.
        target: KL per response (nats) to steer to; none: the weight stays as it is.
        horizon: episodes over which the weight adapts.
    """

    def __init__(self, coefficient: float, target: float | None, horizon: int) -> None:
        self.coefficient = coefficient
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Takes in a rollout.

        Args:
            kl: mean KL per response, in nats.
            episodes: responses in the rollout.
        """
        if self._target is None:
            return
        error = min(max(kl / self._target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + error * episodes / self._horizon

    def state_dict(self) -> dict[str, Any]:
        """The weight."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self.coefficient = float(state["coefficient"])
