"""Which row of a batch is which: branch (source, target), guidance half (cond, uncond), image."""

from dataclasses import dataclass
from typing import NamedTuple


class Role(NamedTuple):
    """What a block of rows is evaluated for."""

    branch: str
    half: str

    def __str__(self) -> str:
        return f"{self.branch} {self.half}"


SOURCE_COND = Role("source", "cond")
SOURCE_UNCOND = Role("source", "uncond")
TARGET_COND = Role("target", "cond")
TARGET_UNCOND = Role("target", "uncond")


@dataclass(frozen=True)
class RowLayout:
    """Order of roles in one batch; each role owns `images` consecutive rows."""

    roles: tuple[Role, ...]
    images: int

    @property
    def rows(self) -> int:
        return len(self.roles) * self.images

    def has(self, role: Role) -> bool:
        return role in self.roles

    def range(self, role: Role) -> range:
        """Return the row numbers of a role; KeyError if the batch does not hold it."""
        if role not in self.roles:
            raise KeyError(f"no {role} rows in this batch ({', '.join(map(str, self.roles))})")
        start = self.roles.index(role) * self.images
        return range(start, start + self.images)

    def slice(self, role: Role) -> slice:
        rows = self.range(role)
        return slice(rows.start, rows.stop)
