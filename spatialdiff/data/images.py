r"""Images of 8 bits and fewer: integers, made continuous by uniform noise, so that they have a density.

A pixel is an integer ``v`` in ``{0, …, L - 1}``. Fields are its *dequantisation*, standardised,

.. math:: x = \frac{v + u - m}{s}, \qquad u \sim U[0, 1)^n \text{ independent}, \qquad
          \log P(v) = \log \int_{[0,1)^n} s^{-n}\, p(x(u))\, du \;\ge\; E_u \log p(x) - n \log s

by Jensen's inequality: a density of fields bounds the probability of images (Theis et al. 2016, arXiv
1511.01844, equation 2), with ``s`` in levels. In *bits per dimension*, n the number of values of an image,
every pixel counted, padded ones too,

.. math:: -\frac{1}{n \log 2} E_u \log p(x) + \log_2 s.

The usual map of 8 bits to [-1, 1] is ``s = 128``; 8 bits per dimension are those of the uniform law on the
levels.
"""

from __future__ import annotations

import dataclasses
import gzip
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from spatialdiff.data.fields import FieldData, from_arrays
from spatialdiff.domains import Grid

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28


def fashion_mnist(
    size: int = 28,
    train: int | None = None,
    test: int | None = None,
    folder: str | Path = FASHION_MNIST,
    seed: int = 0,
) -> FieldData:
    """Fashion-MNIST: 60000 training and 10000 held-out images of clothes (Xiao et al., arXiv 1708.07747).

    The files are those of the Debian package `dataset-fashion-mnist`, which `make data` installs.

    Args:
        size: side of an image: 28, as they come; more, such as 32, pads with zeros all around; less, such as
            16 or 14, averages over areas and rounds to the 256 levels again.
        train, test: how many of the first images of each part; all where None.
        folder: where the files are.
        seed: of the dequantisation noise.

    Raises:
        FileNotFoundError: the files are not there; says how to install them.
        ValueError: a size or number out of range, or files that are not whole.
    """
    if size < 1:
        raise ValueError(f"size={size}; needed a positive number of pixels, such as 16, 28 or 32")
    parts = {}
    for part, stem, number in (("train", "train", train), ("test", "t10k", test)):
        file = Path(folder) / f"{stem}-images-idx3-ubyte.gz"
        if not file.is_file():
            raise FileNotFoundError(
                f"There is no Fashion-MNIST at {file}: install the Debian package dataset-fashion-mnist "
                "(make data, or apt-get install dataset-fashion-mnist), or give folder= of its *.gz files. "
                "spatialdiff.data.digits needs no such package."
            )
        parts[part] = _resized(_first(read_idx(file), number, part), size)
    return from_codes(
        parts["train"],
        parts["test"],
        levels=256,
        name="Fashion-MNIST",
        description=f"grey images of clothes, {size} x {size} pixels, 8 bits",
        seed=seed,
    )


def digits(held_out: int = 360, seed: int = 0) -> FieldData:
    """Handwritten digits of scikit-learn: 1797 of 8 x 8 pixels with 17 levels (Alpaydin & Kaynak 1998).

    The last `held_out` in the order they come in are held out.

    Args:
        held_out: images held out.
        seed: of the dequantisation noise.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: no images are left to train on.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits come with scikit-learn: pip install scikit-learn", name=error.name
        ) from error
    codes = torch.from_numpy(load_digits().images).to(torch.uint8)
    if not 0 <= held_out < len(codes):
        raise ValueError(f"held_out={held_out}; needed at least 0 and fewer than the {len(codes)} images")
    kept = len(codes) - held_out
    return from_codes(
        codes[:kept],
        codes[kept:],
        levels=17,
        name="digits",
        description="handwritten digits, 8 x 8 pixels, 17 levels",
        seed=seed,
    )


def from_codes(
    train: Tensor,
    test: Tensor,
    *,
    levels: int,
    grid: Grid | None = None,
    name: str = "images",
    description: str = "",
    seed: int = 0,
) -> FieldData:
    """Quantised fields of your own: dequantised by one draw of noise, and standardised by the training part.

    Args:
        train, test: integers `(N, *grid)` or `(N, C, *grid)` in `{0, …, levels - 1}`.
        levels: L, at most 256.
        grid: where they live; a unit grid of the last axes where it is not given, with one channel.
        name, description: for pictures and reports.
        seed: of the dequantisation noise; `redequantised` draws anew.

    Raises:
        TypeError: values that are not integers.
        ValueError: values outside of the levels, or what `from_arrays` refuses.
    """
    if not 2 <= levels <= 256:
        raise ValueError(f"levels={levels}; needed from 2 to 256")
    generator = torch.Generator().manual_seed(seed)
    codes = {part: _check_codes(given, levels, part) for part, given in (("train", train), ("test", test))}
    noisy = {part: dequantise(kept, generator=generator) for part, kept in codes.items()}
    data = from_arrays(
        noisy["train"],
        noisy["test"] if len(noisy["test"]) else None,
        grid=grid,
        name=name,
        units="levels",
        description=description,
    )
    shaped = {part: codes[part].reshape(getattr(data, part).shape) for part in codes}
    return dataclasses.replace(data, levels=levels, codes=shaped)


def dequantise(codes: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """`v + u`, `u ~ U[0, 1)` independent: integers of any shape as float64 values between two levels."""
    noise = torch.rand(codes.shape, generator=generator, dtype=torch.float64)
    return codes.double() + noise.to(codes.device)


def redequantised(data: FieldData, part: str = "test", *, generator: torch.Generator | None = None) -> Tensor:
    """The standardised fields `(N, C, *grid)` of a part with new dequantisation noise, float32.

    Raises:
        ValueError: fields that are not quantised, or a part that there is not.
    """
    if data.levels is None:
        raise ValueError(f"{data.name} are continuous fields: there is nothing to dequantise")
    if part not in data.codes:
        raise ValueError(f"part={part!r}; the parts are {', '.join(data.codes)}")
    return data.standardisation.apply(dequantise(data.codes[part], generator=generator)).float()


def read_idx(path: str | Path) -> Tensor:
    """An array of bytes in the idx format, gzipped or not: two zeros, type 8, the number of axes, their sizes
    as big-endian integers of 32 bits, the values (uint8).

    Raises:
        ValueError: a file of another kind, or one that is not whole.
    """
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path} is no idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}"
        )
    axes = content[3]
    start = 4 + 4 * axes
    sizes = struct.unpack(f">{axes}I", content[4:start]) if len(content) >= start else ()
    needed = torch.Size(sizes).numel()
    if len(sizes) != axes or len(content) - start != needed:
        raise ValueError(
            f"{path} has {max(0, len(content) - start)} values for {axes} axes of sizes {sizes}; "
            f"needed {needed}"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(sizes)


def _first(images: Tensor, number: int | None, part: str) -> Tensor:
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"the {part} images have shape {tuple(images.shape)}; needed (N, {SIDE}, {SIDE})")
    if number is None:
        return images
    if not 1 <= number <= len(images):
        raise ValueError(f"{part}={number}; needed from 1 to the {len(images)} images there are")
    return images[:number]


def _resized(images: Tensor, size: int) -> Tensor:
    """Images `(N, s, s)` padded with zeros to `size`, or averaged over areas and rounded, uint8."""
    side = images.shape[-1]
    if size >= side:
        before = (size - side) // 2
        after = size - side - before
        return torch.nn.functional.pad(images, (before, after, before, after))
    edges = torch.arange(size + 1, dtype=torch.float64) * side / size
    pixels = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    weights = overlap.clamp(min=0.0) * size / side
    # in parts: 60000 images in float64 would take 400 MB
    means = [(weights @ part.double() @ weights.mT).round().to(torch.uint8) for part in images.split(4096)]
    return torch.cat(means)


def _check_codes(codes: Tensor, levels: int, name: str) -> Tensor:
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{name} holds values of type {codes.dtype}; needed integers, one for each level")
    if codes.numel():
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= levels:
            raise ValueError(f"{name} has values from {low} to {high}; needed from 0 to {levels - 1}")
    return codes.to(torch.uint8)
