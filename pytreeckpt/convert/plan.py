"""A plan as a value: entries, what they go from and to, and what there is to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytreeckpt.arrays import AnyArray
from pytreeckpt.convert.applying import Converted, convert_arrays
from pytreeckpt.convert.entries import Spec, inverted
from pytreeckpt.convert.inventory import tree_of
from pytreeckpt.convert.leaves import FoundLeaf, array_of, plain_path, values_by_path
from pytreeckpt.convert.optimizers import Recipe
from pytreeckpt.convert.parity import Computes, Level, ParityReport, verify_plan
from pytreeckpt.convert.rebuilding import nested, rebuilt
from pytreeckpt.convert.records import Convention, Entry
from pytreeckpt.convert.report import Report, report_of
from pytreeckpt.paths import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """How one tree becomes another.

    `entries`: which leaves become which, by which operations, and what decided that. `source` and `target`: the shapes
    and dtypes of these leaves by path. `conventions`: of the source and of the target. `notes`: what the program has to
    see to. `unused` and `missing`: what is left over on either side, and was waived. `recipes`: for each optimizer of
    torch, what goes on as it did in optax.

    Plans are equal if they do the same; `template`, the tree that the target was, and what results look like, does not
    count, and is not stored by `pytreeckpt.convert.to_document`.
    """

    entries: tuple[Entry, ...]
    source: Mapping[Path, Spec]
    target: Mapping[Path, Spec]
    conventions: tuple[Convention, Convention]
    notes: tuple[str, ...] = ()
    unused: tuple[Path, ...] = ()
    missing: tuple[Path, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    template: Any = field(default=None, compare=False, repr=False)
    origin: Any = field(default=None, compare=False, repr=False)

    def report(self) -> Report:
        """What the plan does, for people (`str`) and programs."""
        return report_of(self)

    def apply(self, tree: object, *, residuals: Mapping[str, AnyArray] | None = None, to: str = "auto") -> Converted:
        """`tree`, of the source's structure, as a tree of the target's: `tree, residuals = plan.apply(tree)`.

        `tree`: an open checkpoint or a tree with values. `residuals`: what `apply` of the inverse gave, so that the way
        back is exact to the bit. `to`: "auto" makes arrays of the target's framework; "numpy", "torch" or "jax", of
        that one. What nothing comes to (waived) keeps the target's value. A plan that was read from a document has no
        target tree: the result is in plain dicts. Raises `ConversionError` with all that does not go.
        """
        given = tree_of(tree)
        own = {} if self.template is None else values_by_path(self.template)
        arrays, kept = convert_arrays(
            self.entries, values_by_path(given), self.source, self.target, residuals=residuals or {}, own=own
        )
        # What is waived is no array of the target's own either.
        arrays |= {path: array for path in self.missing if (array := _own_array(own.get(plain_path(path)))) is not None}
        if self.template is None:
            return Converted(nested(arrays, to="numpy" if to == "auto" else to), kept)
        return Converted(rebuilt(self.template, arrays, to=to), kept)

    def invert(self) -> Plan:
        """The way back: with the residuals of `apply` it gives the source to the bit, whatever the operations were."""
        return replace(
            self,
            entries=tuple(map(inverted, self.entries)),
            source=self.target,
            target=self.source,
            conventions=(self.conventions[1], self.conventions[0]),
            unused=self.missing,
            missing=self.unused,
            template=self.origin,
            origin=self.template,
        )

    def verify(
        self,
        source: Computes | Callable[[Any, Any], Any],
        target: Computes | Callable[[Any, Any], Any],
        tree: object,
        inputs: Any,
        *,
        tolerances: Mapping[Level, float] | None = None,
    ) -> ParityReport:
        """Whether both sides compute the same: first whether the way back is exact to the bit, then outputs, gradients
        and a step of the optimizer, as far as `source` and `target` say how to compute them. The report is `ok` if
        nothing differs and outputs were compared.

        `tree`: with values, in float64 if differences are to be those of rounding only. `tolerances`: the greatest
        |a − b| / (1 + |b|) that passes, by level.
        """
        return verify_plan(self, source, target, tree, inputs, tolerances=tolerances)


def _own_array(leaf: FoundLeaf | None) -> AnyArray | None:
    """A copy of the array that a leaf is; None for one that is none, or is abstract."""
    if leaf is None or leaf.shape is None:
        return None
    try:
        return array_of(leaf.value).copy()
    except TypeError:
        return None
