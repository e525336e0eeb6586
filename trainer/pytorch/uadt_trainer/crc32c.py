"""CRC-32C (Castagnoli) of byte strings, in numpy: the bus checks every message with it.

A checksum is linear over GF(2). Long inputs are cut into lanes that run side by
side, one table look-up for all lanes at a time, and the lanes are then joined:
crc(a | b) = shift(crc(a), len(b)) ^ crc(b), where shift appends zero bytes.
"""

from __future__ import annotations

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LANES = 1024


def _table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1)
    return values


_TABLE = _table()
_LIST = [int(x) for x in _TABLE]


def _step(crc: np.ndarray, data: np.ndarray) -> np.ndarray:
    return _TABLE[(crc ^ data) & 0xFF] ^ (crc >> 8)


def _zeros(count: int) -> np.ndarray:
    """Return the operator that appends `count` zero bytes: the images of the 32 bits."""
    operator = np.uint32(1) << np.arange(32, dtype=np.uint32)
    square = _step(operator, np.zeros(32, dtype=np.uint32))  # one zero byte
    while count:
        if count & 1:
            operator = np.array([_apply(square, int(x)) for x in operator], dtype=np.uint32)
        square = np.array([_apply(square, int(x)) for x in square], dtype=np.uint32)
        count >>= 1
    return operator


def _apply(operator: np.ndarray, value: int) -> int:
    bits = (value >> np.arange(32)) & 1
    return int(np.bitwise_xor.reduce(operator * bits.astype(np.uint32)))


def crc32c(data: bytes | memoryview) -> int:
    """Return the checksum of data."""
    view = np.frombuffer(data, dtype=np.uint8)
    length = len(view) // _LANES
    state = 0xFFFFFFFF
    if length >= 8:
        lanes = view[: length * _LANES].reshape(_LANES, length).T.astype(np.uint32)
        crc = np.zeros(_LANES, dtype=np.uint32)
        for column in lanes:
            crc = _step(crc, column)
        operator = _zeros(length)
        for lane in crc:
            state = _apply(operator, state) ^ int(lane)
        view = view[length * _LANES :]
    for byte in view.tolist():
        state = _LIST[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def checksum(data: bytes | memoryview) -> str:
    """Render the checksum as the bus's headers have it."""
    return f"{crc32c(data):08x}"
