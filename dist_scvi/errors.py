"""Why a run ends before its last step though nothing is wrong with its configuration or its cells."""


class StoppedError(RuntimeError):
    """It was asked to stop. All that was done is saved; started again, it goes on."""


class WorkersFailedError(RuntimeError):
    """Workers were lost more often than allowed. Nothing that was saved is lost; started again, it goes on."""


class WeightsDifferError(RuntimeError):
    """Workers whose weights should be equal hold different ones: a machine computes wrongly."""


class LostLeaseError(RuntimeError):
    """Another start of the run has taken over; this one must not write any more."""
