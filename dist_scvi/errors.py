"""Why a run ends before its last step though nothing is wrong with its configuration or its cells."""


class StoppedError(RuntimeError):
    """It was requested to stop. All that was done is saved; started again, it resumes."""


class WorkersFailedError(RuntimeError):
    """Workers were lost more often than allowed. Nothing that was saved is lost; started again, it resumes."""


class WeightsDifferError(RuntimeError):
    """Workers whose weights should be equal have different ones: a machine is faulty."""


class LostLeaseError(RuntimeError):
    """Another start of the run has taken over; this one must not write any more."""
