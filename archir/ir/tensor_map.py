"""How a stored tensor is made of the one it takes the place of; weights, gradients and moments all go this way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Fresh:
    """What the new places of an axis hold in a weight: given numbers, or random ones like those of the tensor.

    Attributes:
        values: given numbers, for some of the new places, the others being zero; added to means where there are
            such; None to draw all.
        seed: of the numbers drawn: normal, with the standard deviation of the tensor; for a vector its mean.
        present: zero where a new place holds zero all the same, one elsewhere; `[new places]`.
        shares: where new places hold means of old ones: what of each each holds; `[new places, old places]`.
        within: by axis, the places that the values are for, numbers of new places along the axis itself.
    """

    values: torch.Tensor | None = None
    seed: int = 0
    present: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    within: tuple[torch.Tensor, ...] = ()

    def content(self, tensor: torch.Tensor, shape: Sequence[int], axis: int) -> torch.Tensor:
        """Return the numbers for the new places along an axis of a tensor, in a given shape."""
        content = tensor.new_zeros(tuple(shape))
        if self.shares is not None and tensor.is_floating_point():
            moved = tensor.movedim(axis, -1)
            means = moved.reshape(-1, moved.shape[-1]) @ self.shares.to(tensor).T
            content = means.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
        if self.values is not None:
            where = tuple(along(d, i.to(tensor.device), tensor.dim()) for d, i in enumerate(self.within))
            content[where] += self.values.to(tensor)
        if self.values is not None or self.shares is not None or not tensor.is_floating_point():
            return content
        if tensor.dim() > 1:
            scale = tensor.std() if tensor.numel() > 1 else tensor.abs().mean()
            generator = torch.Generator().manual_seed(self.seed)
            content = torch.randn(tuple(shape), generator=generator, dtype=tensor.dtype).to(tensor.device) * scale
        else:
            content = content + tensor.mean()
        return content if self.present is None else content * along(axis, self.present.to(tensor), tensor.dim())


@dataclass(frozen=True)
class Division:
    """A factor `m ** -e` at every place of an axis.

    Attributes:
        copies: `m`, the number of units that a unit has become; a half where two became one. `[places]`.
        exponent: `e`.
    """

    copies: torch.Tensor
    exponent: int


@dataclass(frozen=True)
class AxisMap:
    """How one axis is made of what it was.

    Attributes:
        axis: the axis.
        index: for each place the old one, -1 for a new one; `[places]`.
        other: for each place another old one it is the mean with; None where nothing is.
        divisions: by what it is divided after that.
        fresh: what the new places hold in a weight; zero if None.
        scale: by what all of it is multiplied in the end.
    """

    axis: int
    index: torch.Tensor
    other: torch.Tensor | None = None
    divisions: tuple[Division, ...] = ()
    fresh: Fresh | None = None
    scale: float = 1.0

    def __call__(self, tensor: torch.Tensor, power: int, *, weight: bool) -> torch.Tensor:
        """Return what a tensor becomes.

        Args:
            tensor: the tensor.
            power: 0 for what is divided like weights; of the gradients in it for what is not.
            weight: whether the new places are filled.
        """
        found = tensor.index_select(self.axis, self.index.clamp(min=0).to(tensor.device))
        if self.other is not None and tensor.is_floating_point():
            found = (found + tensor.index_select(self.axis, self.other.to(tensor.device))) / 2
        new = (self.index < 0).nonzero()[:, 0]
        if len(new):
            shape = [len(new) if d == self.axis else n for d, n in enumerate(tensor.shape)]
            fresh = self.fresh if weight else None
            content = tensor.new_zeros(shape) if fresh is None else fresh.content(tensor, shape, self.axis)
            found = found.index_copy(self.axis, new.to(tensor.device), content)
        for division in self.divisions:
            exponent = power * (division.exponent - 1) if power else -division.exponent
            if exponent:
                found = found * along(self.axis, division.copies.to(found) ** exponent, tensor.dim())
        return found if self.scale == 1 else found * self.scale ** (-power if power else 1)


@dataclass(frozen=True)
class TensorMap:
    """How a stored tensor is made of the one it takes the place of.

    A unit that becomes `m` copies holds in each `m ** -e` of its weights, where the exponent `e` belongs to the place;
    what goes through the gradients of a loss that is kept then holds `m ** (e - 1)` of what it held, and its p-th power
    `m ** (p (e - 1))`. What is multiplied by s as a whole has gradients of `1 / s`.

    Attributes:
        axes: maps of single axes, done one after another; none if the tensor is as it was.

    Source: ours.
    """

    axes: tuple[AxisMap, ...] = ()

    def weight(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stored tensor, new places filled."""
        return self._map(tensor, 0, weight=True)

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what a change of the stored tensor becomes, or a moving average of it: new places are zero."""
        return self._map(tensor, 0, weight=False)

    def gradient(self, tensor: torch.Tensor, power: int = 1) -> torch.Tensor:
        """Return what is gathered of the gradients of the stored tensor; new places have none yet.

        Args:
            tensor: shaped like the stored tensor.
            power: of the gradients in it: 1 for momentum, 2 for second moments.
        """
        return self._map(tensor, power, weight=False)

    def unscaled(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what numbers become that grow with neither weights nor gradients; new places are zero.

        Args:
            tensor: shaped like the stored tensor.
        """
        return TensorMap(tuple(replace(axis, divisions=(), scale=1.0) for axis in self.axes)).change(tensor)

    def fresh(self, like: torch.Tensor) -> torch.Tensor:
        """Return where the new tensor holds nothing of the old one, which is given."""
        return self.change(torch.ones_like(like, dtype=torch.float64)) == 0

    def then(self, later: TensorMap) -> TensorMap:
        """Return this map followed by another."""
        return TensorMap((*self.axes, *later.axes))

    def _map(self, tensor: torch.Tensor, power: int, *, weight: bool) -> torch.Tensor:
        for axis in self.axes:
            tensor = axis(tensor, power, weight=weight)
        return tensor


def along(axis: int, vector: torch.Tensor, rank: int) -> torch.Tensor:
    """Return a vector as a tensor of some rank that lies along one axis and is broadcast along the others."""
    return vector.reshape([-1 if d == axis else 1 for d in range(rank)])
