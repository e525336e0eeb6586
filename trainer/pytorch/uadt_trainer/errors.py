"""What a command can fail with; the class name goes over the wire."""

from __future__ import annotations

from collections.abc import Sequence


class CommandError(Exception):
    """A command that cannot be carried out; the message goes back to the coordinator."""

    def details(self) -> dict[str, object]:
        """Return the fields that the coordinator's typed error needs."""
        return {}


class NotBegunError(CommandError):
    """A command before a stage began."""


class StepOrderError(CommandError):
    """A repeated or skipped step."""

    def __init__(self, have: int, got: int) -> None:
        super().__init__(f"optimizer is at step {have}, got step {got}, want {have + 1}")
        self.have, self.got = have, got

    def details(self) -> dict[str, object]:
        """Return the step that stands and the one that was asked for."""
        return {"have": self.have, "got": self.got}


class IncarnationError(CommandError):
    """A command of an older coordinator."""

    def __init__(self, have: int, got: int) -> None:
        super().__init__(f"incarnation {got} is lower than {have}, which this trainer serves")


class BadStepError(CommandError):
    """A loss or gradient that is not finite; the update was not applied."""

    def __init__(self, step: int, what: str, traces: Sequence[tuple[str, int]]) -> None:
        self.step, self.what = step, what
        self.groups = list(dict.fromkeys(group for group, _ in traces))
        self.traces = [f"{group}/{index}" for group, index in traces]
        super().__init__(f"step {step} refused: {what} is not finite (traces {self.traces})")

    def details(self) -> dict[str, object]:
        """Return the step, the value, and the groups and traces at fault."""
        return {"step": self.step, "what": self.what, "groups": self.groups, "traces": self.traces}


class GroupError(CommandError):
    """A group that does not fit the model."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(f"group {group}: {reason}")
        self.group, self.reason = group, reason

    def details(self) -> dict[str, object]:
        """Return the group's id and what is wrong with it."""
        return {"group": self.group, "reason": self.reason}
