"""Jobs on other machines than those of a fixture."""

from dataclasses import replace
from typing import Any

from dist_scvi.launch.clusters.job import Job


def with_options(job: Job, **options: Any) -> Job:
    """Return the job with other options."""
    return replace(job, options=replace(job.options, **options))
