"""A run that changes nothing and records the source's attention, several steps in one batch."""

from collections.abc import Sequence

from torch import Tensor

from ..diffusion.errors import HostError
from .kernels import Attention
from .plan import RunFacts
from .rows import SOURCE_COND, Role, RowLayout
from .run import EditRun
from .sites import ResidualBlock, Site
from .store import Recorder, Slot


class RecordingRun(EditRun):
    """Hooks of a capture; a role's rows are those of several steps, each with all images."""

    def __init__(self, facts: RunFacts, recorder: Recorder) -> None:
        super().__init__(facts, ())
        self.recorder = recorder
        self._wanted = {site for site, _ in recorder.spec.sites}
        self._steps: tuple[int, ...] = ()
        self._keys: dict[Site, Tensor] = {}

    def begin_steps(self, steps: Sequence[int], layout: RowLayout) -> None:
        """Start one model call. layout.images: steps x images rows for each role."""
        self.layout, self._steps = layout, tuple(steps)
        self._reached.clear()

    def end(self) -> None:
        """Finish one model call. Raises: HostError if a layer was never reached."""
        self.layout = None
        missed = (self._wanted | self.residual_blocks()) - self._reached
        if missed:
            names = ", ".join(sorted(map(str, missed))[:4])
            raise HostError(
                f"{len(missed)} attention layers were never reached by the capture ({names}): "
                "another node replaces these blocks; remove it or connect the model before it"
            )

    def edits(self, site: Site) -> bool:
        return self.layout is not None and site in self._wanted

    def self_inputs(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the input of a self-attention; return everything as it came."""
        if self.edits(site):
            if key is not query or value is not query:
                raise HostError(
                    f"another node feeds {site} different queries, keys and values; an attention "
                    "store cannot hold that: connect the capture to the model before that node"
                )
            self._reached.add(site)
            for half in self.recorder.spec.halves:
                self._write(Slot("hidden", site, half), query)
        return query, key, value

    def cross_attention(
        self, site: Site, q: Tensor, k: Tensor, v: Tensor, attention: Attention
    ) -> Tensor:
        """Keep the source's queries and, once, its keys; return plain attention."""
        if self.edits(site):
            self._reached.add(site)
            self._write(Slot("query", site), q)
            self._write_key(site, k[self.layout.slice(SOURCE_COND)])
        return attention(q, k, v)

    def residual_blocks(self) -> set[ResidualBlock]:
        return {block for block, _ in self.recorder.spec.features}

    def residual(self, block: ResidualBlock, h: Tensor) -> Tensor:
        """Keep the output of a residual branch."""
        if self.layout is not None:
            self._reached.add(block)
            self._write(Slot("feature", block), h)
        return h

    def _write(self, slot: Slot, x: Tensor) -> None:
        rows = x[self.layout.slice(Role("source", slot.half))]
        images = self.recorder.spec.images
        for number, step in enumerate(self._steps):
            self.recorder.write(slot, step, rows[number * images : (number + 1) * images])

    def _write_key(self, site: Site, keys: Tensor) -> None:
        """Keep the keys of the first step and see that the others' are the same."""
        spec = self.recorder.spec
        keys = keys[:, : spec.tokens]  # the host pads a context by repeating it
        if site not in self._keys:
            self._keys[site] = keys[: spec.images]
            self.recorder.write(Slot("key", site), spec.steps[0], self._keys[site])
        first = self._keys[site].repeat(len(self._steps), 1, 1).float()
        if float((keys.float() - first).norm()) > 0.01 * float(first.norm()):
            raise HostError(
                f"the source prompt's keys in {site} change from step to step; an attention store "
                "keeps them once: use a conditioning without time ranges"
            )
