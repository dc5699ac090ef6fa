"""Symbols to bits and back: an entropy coder for one picture, fed with distributions one decision at a time.

The range coder is constriction's: probabilities become whole numbers of 1/2²⁴, at least 1 for each symbol that is
listed, by arithmetic that is the same on every machine. What it writes is cut to the fewest bytes that still decode.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

_WORD = 4
"""Bytes of the coder's words; its state has two of them."""

_SLACK = 4 * _WORD
"""Bytes by which what was decoded may be longer than the data before it counts as damaged."""


class DamagedBits(Exception):
    """The bits can't have been written by the distributions that they are decoded with."""


def require_constriction() -> None:
    """Check that the entropy coder is installed.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec("constriction") is None:
        raise ValueError("compressing needs the entropy coder constriction; pip install 'dctransformer[compress]'")


class SymbolCoder:
    """Codes the symbols of one picture: takes them from the caller, or from the bits of an earlier run.

    While it decodes, it encodes what it decoded again: data that is longer than that is damaged, and decoding ends soon
    after data that is cut short. Otherwise any bits are those of some picture, so a checksum is needed, too.
    """

    def __init__(self, data: bytes | None = None):
        """Start encoding or decoding.

        Args:
            data: the bits to decode, from `finish`; None to encode.
        """
        stream: Any = importlib.import_module("constriction").stream
        self._categorical, self._bernoulli = stream.model.Categorical, stream.model.Bernoulli(perfect=False)
        self._family = self._categorical(perfect=False)
        self._encoder = stream.queue.RangeEncoder()
        self._decoder = None
        self._data = data
        if data is not None:
            padded = data + bytes(-len(data) % _WORD + 2 * _WORD)
            self._decoder = stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def symbol(self, log_weights: np.ndarray, symbol: int | None = None) -> int:
        """Code one symbol.

        Args:
            log_weights: fp64 ``[K]``, log-probabilities of the possible symbols up to a constant.
            symbol: which of them it is; None to decode it.

        Raises:
            DamagedBits: no symbol can be decoded.
        """
        if len(log_weights) == 1:
            return 0
        model = self._categorical(np.exp(log_weights - log_weights.max()), lazy=True)
        if self._decoder is not None:
            symbol = int(self._decoded(model))
        self._encoder.encode(symbol, model)
        self._check_length()
        assert symbol is not None
        return symbol

    def symbols(self, log_p: np.ndarray, symbols: np.ndarray | None = None) -> np.ndarray:
        """Code several symbols, each with a distribution of its own: log-probabilities fp64 ``[n, K]``, int ``[n]``."""
        if not len(log_p) or log_p.shape[1] == 1:
            return np.zeros(len(log_p), np.int64)
        p = np.ascontiguousarray(np.exp(log_p - log_p.max(-1, keepdims=True)))
        return self._several(self._family, p, symbols)

    def flags(self, p: np.ndarray, flags: np.ndarray | None = None) -> np.ndarray:
        """Code independent yes-or-no decisions: probabilities of yes fp64 ``[n]``, bool ``[n]``."""
        if not len(p):
            return np.zeros(0, bool)
        return self._several(self._bernoulli, np.ascontiguousarray(p), flags).astype(bool)

    def _several(self, family: object, parameters: np.ndarray, symbols: np.ndarray | None) -> np.ndarray:
        if self._decoder is not None:
            symbols = self._decoded(family, parameters)
        assert symbols is not None
        self._encoder.encode(symbols.astype(np.int32), family, parameters)
        self._check_length()
        return symbols

    def _decoded(self, *model: object) -> np.ndarray:
        assert self._decoder is not None
        try:
            return self._decoder.decode(*model)
        except AssertionError as error:  # constriction's error for bits that no symbol has
            raise DamagedBits from error

    def _check_length(self) -> None:
        if self._data is not None and self._encoder.num_words() * _WORD > len(self._data) + _SLACK:
            raise DamagedBits

    def finish(self) -> bytes:
        """Return the bits of all symbols so far, in as few bytes as can be (trailing zeros are left out).

        Raises:
            DamagedBits: they are not those that were decoded.
        """
        words = self._encoder.get_compressed()
        count, (lower, width) = self._encoder.pos()
        # A range coder's result is any number in an interval. constriction gives one, with as many words as it needs;
        # the interval's end is at (count + 2) words, and its low 64 bits are known.
        one = int.from_bytes(words.astype(">u4").tobytes(), "big") << 8 * _WORD * (count + 2 - len(words))
        start = one - ((one - lower) & ((1 << 64) - 1))
        shift = next(shift for shift in range(72, -1, -8) if _rounded_up(start, shift) < start + width)
        data = _rounded_up(start, shift).to_bytes((count + 2) * _WORD, "big").rstrip(b"\0")
        if self._data is not None and data != self._data:
            raise DamagedBits
        return data


def _rounded_up(number: int, bits: int) -> int:
    """Return the smallest multiple of 2 to the power ``bits`` that is at least the number."""
    return -(-number >> bits) << bits
