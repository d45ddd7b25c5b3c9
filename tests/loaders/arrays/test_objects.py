import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dist_scvi.loaders.arrays.objects import LocalObjects, StorageError, check_length

BODY = np.random.default_rng(0).bytes(10_000)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class TestLocalObjects:
    def test_few_files_stay_open(self, tmp_path):
        for number in range(40):
            (tmp_path / str(number)).write_bytes(bytes([number]))
        objects = LocalObjects(tmp_path, max_open=4)
        before = open_files()
        with ThreadPoolExecutor(8) as threads:
            keys = [str(number % 40) for number in range(2_000)]
            assert list(threads.map(lambda key: objects.read(key, 0, 1)[0], keys)) == list(map(int, keys))
        assert open_files() - before <= 4

    @pytest.mark.parametrize("known", [True, False])
    def test_a_read_that_comes_in_pieces_is_joined(self, tmp_path, monkeypatch, known):
        (tmp_path / "object").write_bytes(BODY)
        whole = os.pread

        def some(number, buffers, at):
            part = whole(number, min(len(buffers[0]), 1_000), at)
            buffers[0][: len(part)] = part
            return len(part)

        if known:
            monkeypatch.setattr(os, "preadv", some)
        else:
            monkeypatch.delattr(os, "preadv")
            monkeypatch.setattr(os, "pread", lambda number, length, at: whole(number, min(length, 1_000), at))
        assert LocalObjects(tmp_path).read("object", 10, 4_500) == BODY[10:4_510]

    def test_a_disk_that_fails_is_named(self, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(StorageError, match=rf"^{tmp_path}/folder cannot be read \(Is a directory\): see that its"):
            LocalObjects(tmp_path).read("folder", 0, 1)


def test_a_read_of_the_length_that_was_asked_for_passes_and_a_shorter_one_is_refused():
    check_length("here", 5, 0, 0)
    check_length("here", 5, 7, 7)
    with pytest.raises(
        ValueError, match=r"^here is truncated: bytes 5 to 11 are needed, 6 of these 7 are there; restore"
    ):
        check_length("here", 5, 7, 6)
