"""Wait until a Ray cluster has all its nodes: ``python -m ...wait_for_nodes ADDRESS NODES SECONDS``."""

import sys
import time

import ray


def wait_for_nodes(address: str, nodes: int, timeout_s: float) -> None:
    """Return when `nodes` nodes are alive.

    Raises
    ------
    TimeoutError
        If they are not within `timeout_s` seconds.
    """
    end, alive = time.monotonic() + timeout_s, 0
    while True:
        try:
            ray.init(address, log_to_driver=False, ignore_reinit_error=True)
            alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
        except ConnectionError:
            pass  # Ray is still starting on the first node
        if alive >= nodes:
            return
        if time.monotonic() > end:
            raise TimeoutError(f"{alive} of {nodes} nodes were alive after {timeout_s:.0f} s")
        time.sleep(2)


if __name__ == "__main__":
    try:
        wait_for_nodes(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    except TimeoutError as error:
        sys.exit(str(error))
