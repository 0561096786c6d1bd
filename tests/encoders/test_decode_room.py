"""Large pictures wait for each other, so that memory does not grow with the threads."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from encoders import picture
from encoders.decode_room import DecodeRoom
from encoders.picture import open_picture


class Inside:
    """How many are inside at once, and how many pixels they have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now, self.most, self.most_pixels = 0, 0, 0
        self._pixels = 0

    def stay(self, pixels: int, seconds: float = 0.01) -> None:
        with self._lock:
            self.now += 1
            self._pixels += pixels
            self.most = max(self.most, self.now)
            self.most_pixels = max(self.most_pixels, self._pixels)
        time.sleep(seconds)
        with self._lock:
            self.now -= 1
            self._pixels -= pixels


def all_through(room: DecodeRoom, sizes: list[int], threads: int = 8) -> Inside:
    inside = Inside()

    def decode(pixels: int) -> None:
        with room.held(pixels):
            inside.stay(pixels)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(decode, pixels) for pixels in sizes]:
            done.result(timeout=30)
    return inside


def test_pictures_inside_have_no_more_pixels_than_allowed() -> None:
    inside = all_through(DecodeRoom(200, small=1), [90, 60, 110, 30, 50, 200, 20] * 8)
    assert inside.most > 1
    assert inside.most_pixels <= 200


def test_one_that_is_larger_than_the_room_goes_in_alone() -> None:
    inside = all_through(DecodeRoom(200, small=1), [1000] * 4)
    assert (inside.most, inside.most_pixels) == (1, 1000)
    mixed = all_through(DecodeRoom(200, small=1), [1000, 10, 20, 30] * 6)
    assert mixed.most_pixels == 1000


def test_small_ones_neither_wait_nor_count() -> None:
    room = DecodeRoom(200, small=50)
    with room.held(200), room.held(49), room.held(49):
        pass
    assert all_through(room, [49] * 30).most > 4


def test_a_large_one_is_not_passed_by_for_ever() -> None:
    room, over = DecodeRoom(200, small=1), threading.Event()

    def keep_coming() -> None:
        while not over.is_set():
            with room.held(60):
                time.sleep(0.002)

    def come_once() -> None:
        with room.held(200):
            over.set()

    others = [threading.Thread(target=keep_coming, daemon=True) for _ in range(6)]
    for thread in others:
        thread.start()
    large = threading.Thread(target=come_once, daemon=True)
    large.start()
    large.join(timeout=20)
    is_through = over.is_set()
    over.set()
    for thread in others:
        thread.join()
    assert is_through


def test_room_is_given_back_when_decoding_fails() -> None:
    room = DecodeRoom(200, small=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), room.held(200):
            raise ValueError("broken")


def large_png(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (100, 80)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_threads_that_open_large_pictures_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside, decode = Inside(), picture.to_rgb

    def watched(image: Image.Image) -> Image.Image:
        inside.stay(image.width * image.height, 0.03)
        return decode(image)

    monkeypatch.setattr(picture, "to_rgb", watched)
    data = large_png()
    for limit, most in ((10**9, 4), (2 * 8000, 2), (10, 1)):
        monkeypatch.setattr(picture, "ROOM", DecodeRoom(limit, small=1))
        inside.most = 0
        with ThreadPoolExecutor(4) as pool:
            for opened in list(pool.map(open_picture, [data] * 12)):
                assert opened.size == (100, 80)
        assert inside.most == most


def test_a_large_jpeg_counts_as_far_as_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    class Noted(DecodeRoom):
        def held(self, pixels: int) -> Any:
            counted.append(pixels)
            return super().held(pixels)

    monkeypatch.setattr(picture, "ROOM", Noted())
    for progressive in (False, True):
        buffer = io.BytesIO()
        Image.new("L", (1024, 2048)).save(buffer, "JPEG", progressive=progressive)
        assert open_picture(buffer.getvalue()).size == (512, 1024)
    # Of a progressive one, the decoder holds all coefficients whatever is made of them.
    assert [pixels for pixels in counted if pixels] == [512 * 1024, 1024 * 2048]
