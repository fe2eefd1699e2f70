from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch

# A symmetry as (source, flipped): output axis m reads input axis source[m], backwards where flipped[m] is 1.
Symmetry = tuple[tuple[int, ...], tuple[int, ...]]

# Quarter turns of two axes in torch.rot90's direction.
_QUARTER_TURNS: tuple[Symmetry, ...] = (((0, 1), (0, 0)), ((1, 0), (1, 0)), ((0, 1), (1, 1)), ((1, 0), (0, 1)))


class CubeGroup:
    """Rotations and flips that map a crop onto itself, one group element for each sample of a batch.

    An element permutes ``axes`` and then reverses some of them: 48 elements for the three axes of a cubic crop, 8 for
    two axes. Elements are numbered 0 .. ``order - 1``, 0 is the identity. The same number acts on an image and on a
    grid of tokens made from it (any ``(B, C, *spatial)`` of any dtype), so features of a rotated image can be brought
    back to the frame of the original: ``restore(apply(x, e), e)`` equals ``x`` to the bit. Both are differentiable.

    All ``axes`` must have the same number of voxels, because the samples of a batch share one shape; other axes may
    have any size. No call waits for the device.

    Args:
        axes: axes of the batch tensor that take part, as negative numbers; the order of the group follows from it.

    Raises:
        ValueError: when ``axes`` is empty, repeats an axis or has an axis that is not negative.
    """

    def __init__(self, axes: Sequence[int] = (-3, -2, -1)) -> None:
        self.axes = tuple(axes)
        if not self.axes or len(set(self.axes)) != len(self.axes) or max(self.axes) >= 0:
            raise ValueError(f"axes must be distinct negative numbers such as (-2, -1), got {self.axes}.")
        rank = len(self.axes)
        self._elements: tuple[Symmetry, ...] = tuple(
            itertools.product(itertools.permutations(range(rank)), itertools.product((0, 1), repeat=rank))
        )
        self._number = {element: number for number, element in enumerate(self._elements)}
        self._products = tuple(
            tuple(self._number[_product(second, first)] for first in self._elements) for second in self._elements
        )
        self._inverses = tuple(row.index(0) for row in self._products)

    @property
    def order(self) -> int:
        """Number of elements."""
        return len(self._elements)

    def draw(
        self, batch: int, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Element numbers (batch,), each drawn uniformly from the whole group."""
        return torch.randint(self.order, (batch,), device=device, generator=generator)

    def apply(self, image: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
        """Move each sample of ``image`` (B, C, *spatial) by its own element (B,); the shape stays.

        Raises:
            ValueError: when ``element`` is not (B,), the sizes along ``axes`` differ, or ``axes`` are not all spatial.
        """
        _check_axes(image, self.axes)
        if len({image.shape[axis] for axis in self.axes}) > 1:
            raise ValueError(
                f"Rotating axes {self.axes} of a batch of shape {tuple(image.shape)} would change its shape; "
                "use a crop with equal sizes along these axes, or a group with fewer axes."
            )
        _check_one_per_sample(image, element, "element")
        device = image.device
        source = _constant(tuple(source for source, _ in self._elements), device)[element.to(device)]
        flipped = _constant(tuple(flipped for _, flipped in self._elements), device)[element.to(device)]
        return _permute_and_flip(image, self.axes, source, flipped)

    def restore(self, image: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`apply`: ``restore(apply(x, element), element)`` is ``x``.

        Raises:
            ValueError: as :meth:`apply`.
        """
        return self.apply(image, self.inverse(element))

    def inverse(self, element: torch.Tensor) -> torch.Tensor:
        """Numbers of the inverse elements, of the shape of ``element``."""
        return _constant(self._inverses, element.device)[element]

    def compose(self, second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Numbers of the elements that act as ``first`` followed by ``second``."""
        return _constant(self._products, first.device)[second, first]

    def from_turns(self, turns: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Elements "quarter turns, then at most one flip" of a group of two axes.

        With ``turns`` uniform on 0 .. 3 and ``flip`` uniform on 0 .. 2 this is the draw of Hu et al., SimTROT. It draws
        each of the four reflections twice as often as each of the four rotations; :meth:`draw` is uniform.

        Args:
            turns: (B,) number of quarter turns, in the direction of ``torch.rot90(image, turns, axes)``.
            flip: (B,) 0 for none, 1 for the first of ``axes``, 2 for the second.

        Raises:
            ValueError: when the group does not have two axes.
        """
        if len(self.axes) != 2:
            raise ValueError(f"Turns and a flip name an element of a group of two axes, but this one has {self.axes}.")
        rotations = tuple(self._number[element] for element in _QUARTER_TURNS)
        flips = tuple(self._number[(0, 1), flipped] for flipped in ((0, 0), (1, 0), (0, 1)))
        device = turns.device
        return self.compose(_constant(flips, device)[flip], _constant(rotations, device)[turns % 4])


def rot90_batch(image: torch.Tensor, k: torch.Tensor, axes: tuple[int, int] = (-2, -1)) -> torch.Tensor:
    """``torch.rot90`` with a number of quarter turns for each sample.

    It does not wait for the device, unless the two sizes differ and it must read ``k``.

    Args:
        image: batch (B, C, *spatial).
        k: quarter turns (B,), any integers; sample b becomes ``torch.rot90(image[b], k[b], axes)``.
        axes: the two axes of the plane, from ``axes[0]`` towards ``axes[1]``, as negative numbers.

    Raises:
        ValueError: when ``k`` is not (B,), is odd for a sample while the sizes along ``axes`` differ, or ``axes`` are
            not two negative numbers of spatial axes.
    """
    _check_axes(image, axes)
    _check_one_per_sample(image, k, "k")
    if image.shape[axes[0]] != image.shape[axes[1]] and bool((k % 2).any()):
        raise ValueError(
            f"A quarter turn in axes {tuple(axes)} would change the shape {tuple(image.shape)} of some samples only; "
            "use a crop with equal sizes along these axes, or even k."
        )
    device = image.device
    turns = k.to(device) % 4
    source = _constant(tuple(source for source, _ in _QUARTER_TURNS), device)[turns]
    flipped = _constant(tuple(flipped for _, flipped in _QUARTER_TURNS), device)[turns]
    return _permute_and_flip(image, axes, source, flipped)


def _product(second: Symmetry, first: Symmetry) -> Symmetry:
    """The symmetry that acts as ``first`` followed by ``second``."""
    source = tuple(first[0][axis] for axis in second[0])
    flipped = tuple(flip ^ first[1][axis] for axis, flip in zip(*second, strict=True))
    return source, flipped


def _check_axes(image: torch.Tensor, axes: Sequence[int]) -> None:
    if len(set(axes)) != len(axes) or not all(2 - image.ndim <= axis < 0 for axis in axes):
        raise ValueError(
            f"axes must be distinct spatial axes of a batch (B, C, *spatial), as negative numbers, got {tuple(axes)} "
            f"for shape {tuple(image.shape)}."
        )


def _check_one_per_sample(image: torch.Tensor, values: torch.Tensor, name: str) -> None:
    if values.shape != image.shape[:1]:
        raise ValueError(
            f"{name} needs one integer for each of the {image.shape[0]} samples, got shape {tuple(values.shape)}."
        )


@lru_cache(maxsize=128)
def _constant(values: tuple, device: torch.device) -> torch.Tensor:
    # Cached, because copying a new table to the device would make the host wait for it at every step.
    return torch.tensor(values, device=device)


def _permute_and_flip(
    image: torch.Tensor, axes: Sequence[int], source: torch.Tensor, flipped: torch.Tensor
) -> torch.Tensor:
    """Output axis ``axes[m]`` of sample b reads input axis ``axes[source[b, m]]``, backwards where ``flipped[b, m]``.

    One gather with flat indices serves all elements of a batch without sorting samples by element. ``source`` may only
    name axes of the same size as the output axis.
    """
    grid = image.shape[2:]
    strides = [1] * len(grid)
    for axis in range(len(grid) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * grid[axis + 1]
    axes = [axis + len(grid) for axis in axes]
    axes_strides = _constant(tuple(strides[axis] for axis in axes), image.device)
    index = torch.zeros((1,) * (1 + len(grid)), dtype=torch.long, device=image.device)
    for axis, size in enumerate(grid):
        position = torch.arange(size, device=image.device)[None]
        if axis in axes:
            which = axes.index(axis)
            position = torch.where(flipped[:, which, None] > 0, size - 1 - position, position)
            position = position * axes_strides[source[:, which, None]]
        else:
            position = position * strides[axis]
        index = index + position.reshape(-1, *(size if a == axis else 1 for a in range(len(grid))))
    voxels = image.flatten(2)
    index = index.expand(len(image), *grid).reshape(len(image), 1, -1).expand_as(voxels)
    return voxels.gather(2, index).reshape(image.shape)
