"""Why a run ended comes through from one process to another."""

import pickle

import pytest

from dist_scvi.errors import LostLeaseError, StoppedError, WeightsDifferError, WorkersFailedError


@pytest.mark.parametrize("kind", [LostLeaseError, StoppedError, WeightsDifferError, WorkersFailedError])
def test_an_end_keeps_its_kind_and_message_between_processes(kind: type[RuntimeError]) -> None:
    again = pickle.loads(pickle.dumps(kind("after step 5")))
    assert (type(again), str(again)) == (kind, "after step 5")
