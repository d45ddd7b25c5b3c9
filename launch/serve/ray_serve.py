"""The same app on Ray Serve: replicas by load, one board of jobs for all of them, and questions answered in batches."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.ray_cluster import join_cluster, prepare_own_cluster
from dist_scvi.launch.serve.limits import Service, service_from
from dist_scvi.launch.signals import call_on_signal

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dist_scvi.launch.serve.questions.asking import Asked
    from dist_scvi.launch.serve.watch import Watch

APP, REPLICA, BOARD = "dist_scvi", "Replica", "Board"
REPLICAS = (1, 4)
"""The least and the most."""
BATCH, BATCH_WAIT_S = 64, 0.005
_ONGOING = 256


def serve_with_ray(
    service: Service,
    host: str,
    port: int,
    *,
    address: str | None,
    replicas: tuple[int, int],
    announce: Callable[[int], None],
) -> None:
    """Run a service on Ray until the process is asked to end.

    Parameters
    ----------
    address
        Of a running cluster, or ``"auto"``; None starts one on this machine that is closed to others.
    replicas
        The least and the most replicas; there are as many as the load needs.
    announce
        Called with the port when the service answers.
    """
    if address is None and "ray" not in sys.modules:  # Ray reads its environment when it is imported
        prepare_own_cluster()
    from ray import serve

    stop = threading.Event()
    with call_on_signal(stop.set), join_cluster(address, replicas[1]), call_on_signal(stop.set):
        start(service, host, port, replicas=replicas)
        announce(port)
        try:
            while not stop.wait(0.5):
                pass
        finally:
            serve.delete(APP)
            if address is None:
                serve.shutdown()  # type: ignore[no-untyped-call]


def start(service: Service, host: str, port: int, *, replicas: tuple[int, int] = REPLICAS) -> None:
    """Start the app on the cluster that this process has joined, and return when it answers."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    serve.start(http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=30))
    serve.run(build({**service.to_dict(), "replicas": replicas}), name=APP, route_prefix="/")


def build(values: Mapping[str, Any]) -> Any:
    """Return the application of a service from plain values; a file of Ray Serve names this function.

    Parameters
    ----------
    values
        Those of `Service.to_dict`, ``replicas``, the least and the most, and ``cpus_per_replica``.
    """
    from ray import serve

    from dist_scvi.launch.serve.questions.jobs import JobBoard

    given = dict(values)
    least, most = given.pop("replicas", REPLICAS)
    cpus = given.pop("cpus_per_replica", 1)
    service = service_from(given)
    board: Any = serve.deployment(
        name=BOARD, num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000
    )
    replica: Any = serve.deployment(
        serve.ingress(lambda: _build_replica(service))(_Replica),
        name=REPLICA,
        max_ongoing_requests=_ONGOING,
        autoscaling_config={"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 8},
        ray_actor_options={"num_cpus": cpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=20,
    )
    return replica.bind(board(JobBoard).bind(service.limits))


class _Replica:
    """The deployment of the app: it keeps the handle of the board alive."""

    def __init__(self, board: Any) -> None:
        self._board = board


def _build_replica(service: Service) -> "FastAPI":
    """Return the app of a replica, in its process."""
    from ray import serve

    from dist_scvi.launch.serve.app import build_app
    from dist_scvi.launch.serve.questions.batches import answer_together

    handle: Any = serve.get_deployment_handle(BOARD)

    async def board(method: str, *arguments: Any) -> Any:
        return await getattr(handle, method).remote(*arguments)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S, max_concurrent_batches=2)
    async def together(items: "Sequence[tuple[Asked, Watch]]") -> "list[Answer | Exception]":
        found: list[Answer | Exception] = await app.state.asker.run(answer_together, items, service.limits)
        return found

    async def ask(asked: "Asked", watch: "Watch") -> Answer:
        found: Answer | Exception = await together((asked, watch))
        if isinstance(found, Exception):
            raise found
        return found

    app = build_app(service, board=board, together=ask)
    return app
