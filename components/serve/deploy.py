"""Putting a model on the Ray that RAY_ADDRESS names, and taking it away again.

One Ray has one endpoint port, as Serve's host and port are fixed while it runs. The first model of a home answers at
the root, each further one under its name. An update keeps the old replicas until the new ones are ready.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.artifacts import Artifact
from components.errors import BusyError, StageError, UnavailableError
from components.serve.config import DeployConfig
from components.serve.endpoint import (
    Endpoint,
    forget_endpoint,
    read_endpoint,
    read_endpoints,
    served_model,
    wait_until_live,
    write_endpoint,
)
from components.serve.haproxy import DRAIN_S, free_ports, port_is_free
from components.serve.keys import keys_file
from components.serve.replica import Replica, ReplicaConfig, replica_config
from components.tracking.names import checked_name

NAMESPACE = "penstock"
READY_TIMEOUT_S = 90.0
REQUEST_TIMEOUT_S = 60.0
RETRY_AFTER_S = 1
# A line a request would cost more than many models do.
LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
# Names that would hide the root model's own routes.
RESERVED = frozenset({"v1", "v2"})


def check_port(host: str, port: int, home: Path | None = None) -> None:
    """Checks that an endpoint can listen there.

    Args:
        port: 0 takes a free one, so it always passes.
        home: If this home's own live endpoint has the port, that is no conflict.

    Raises:
        BusyError: If another process listens on the port.
    """
    if port == 0 or port_is_free(host, port):
        return
    if home is not None and any(item.port == port and served_model(item) for item in read_endpoints(home)):
        return
    raise BusyError(
        f"Port {port} on {host} is in use by another process; set deploy.port to a free port, or to 0 for any.",
        field="deploy.port",
    )


@contextmanager
def connected() -> Iterator[None]:
    """Connects to the Ray of RAY_ADDRESS for a while; a connection that is already there is used and kept."""
    import ray

    if ray.is_initialized():
        yield
        return
    if not os.environ.get("RAY_ADDRESS"):
        raise UnavailableError("RAY_ADDRESS names no Ray to deploy on; use `penstock run` or `penstock serve`.")
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, namespace=NAMESPACE)
    except ConnectionError as error:
        raise UnavailableError(
            f"The Ray at {os.environ['RAY_ADDRESS']} does not answer; run the command again."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def start_serve(host: str, port: int) -> int:
    """Starts Serve and HAProxy without a model; returns the port. Safe to call again, and early in a run.

    Raises:
        BusyError: If the port is taken, or Serve already runs on this Ray with another host or port.
    """
    with connected():
        running = running_options()
        if running is not None:
            return _matching_port(running, host, port)
        check_port(host, port)
        from ray import serve
        from ray.serve.config import HTTPOptions

        port = port or free_ports(1)[0]
        options = HTTPOptions(host=host, port=port, request_timeout_s=REQUEST_TIMEOUT_S, keep_alive_timeout_s=75)
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=LOGGING)
        return port


def running_options() -> tuple[str, int] | None:
    """Host and port of the Serve that runs on the connected Ray, or None."""
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    options = ray.get(client._controller.get_http_config.remote())
    return str(options.host), int(options.port)


def _matching_port(running: tuple[str, int], host: str, port: int) -> int:
    if running[0] != host or port not in (0, running[1]):
        raise BusyError(
            f"The endpoint of this PENSTOCK_HOME is at {running[0]}:{running[1]}, but {host}:{port} was asked for; "
            f"set deploy.host and deploy.port to these, or end it with `penstock stop`.",
            field="deploy.port",
        )
    return running[1]


def deploy_model(artifact: Artifact, name: str, version: str, deploy: DeployConfig, home: Path) -> Endpoint:
    """Serves a verified model and returns once it answers with its digest.

    Args:
        artifact: The `model` artifact.
        name: Name of the endpoint and of the model in its routes.
        version: Version of the model, as its routes and answers tell it.
        home: Where the endpoint's record is kept.

    Raises:
        BusyError: If the port is taken.
        SpecError: If the host is not loopback and no API keys are set.
        StageError: If the model does not come up; what was there before goes on answering.
    """
    checked_name(name)
    config = replica_config(artifact, name, version, deploy, keys_file(deploy.host))
    with connected():
        before = live_endpoint(home, name)
        port = start_serve(deploy.host, deploy.port)
        prefix = before.route_prefix if before else route_prefix(home, name)
        host = f"[{deploy.host}]" if ":" in deploy.host else deploy.host
        reachable = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 (compared, not bound)
        url = f"http://{reachable}:{port}{prefix.rstrip('/')}"
        endpoint = Endpoint(url, name, version, artifact.digest, name, deploy.host, port)
        _run_application(config, deploy, name, prefix)
        if not wait_until_live(endpoint, READY_TIMEOUT_S):
            raise StageError(f"{name} was deployed, but does not answer at {url}; see Ray's log.")
    write_endpoint(home, endpoint)
    return endpoint


def _run_application(config: ReplicaConfig, deploy: DeployConfig, name: str, prefix: str) -> None:
    """Hands the application to Serve and waits until it runs."""
    from ray import serve

    application = deployment(deploy).bind(config)
    try:
        serve.run(application, name=name, route_prefix=prefix, logging_config=LOGGING)
    except RuntimeError as error:
        raise StageError(f"{name} could not be deployed: {failure_reason(name) or error}") from error


def deployment(deploy: DeployConfig) -> Any:
    """The Serve deployment with the settings of the spec."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, BackpressureConfig

    scale: dict[str, Any] = {"num_replicas": deploy.replicas.min}
    if deploy.replicas.max > deploy.replicas.min:
        scaling = AutoscalingConfig(
            min_replicas=deploy.replicas.min,
            max_replicas=deploy.replicas.max,
            target_ongoing_requests=max(2.0, deploy.max_batch_size / 2),
        )
        scale = {"autoscaling_config": scaling}
    return serve.deployment(
        name="model",
        # No logical CPU, so that an endpoint never starves the next run.
        ray_actor_options={"num_cpus": 0},
        # Two batches: one is computed while the next one fills.
        max_ongoing_requests=max(8, 2 * deploy.max_batch_size),
        max_queued_requests=deploy.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=DRAIN_S + 7,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=2,
        # The new replicas are there before the old ones go: no request meets an empty endpoint.
        rolling_update_percentage=1.0,
        max_surge_percent=100,
        **scale,
    )(serve.ingress()(Replica))


def failure_reason(name: str) -> str | None:
    """The last line of what made an application fail: its error's own sentence."""
    from ray import serve

    status = serve.status().applications.get(name)
    if status is None:
        return None
    messages = [status.message, *(item.message for item in status.deployments.values())]
    lines = [line.strip() for message in messages for line in (message or "").splitlines() if line.strip()]
    causes = [line for line in lines if "Error:" in line]
    return (causes or lines or [None])[-1]


def live_endpoint(home: Path, name: str) -> Endpoint | None:
    """The recorded endpoint of `name` if its application is on the connected Ray."""
    endpoint = read_endpoint(home, name)
    return endpoint if endpoint is not None and endpoint.application in running_applications() else None


def running_applications() -> set[str]:
    """Names of the applications on the connected Ray."""
    from ray import serve

    return set(serve.status().applications) if running_options() is not None else set()


def route_prefix(home: Path, name: str) -> str:
    """The root for the first model of a home, else a path of its own."""
    running = running_applications()
    taken = {item.route_prefix for item in read_endpoints(home) if item.application in running}
    if "/" not in taken:
        return "/"
    return f"/{name}-model" if name in RESERVED else f"/{name}"


def stop_model(home: Path, name: str) -> bool:
    """Takes one endpoint away and forgets it; returns whether it was running. Ray and other endpoints stay."""
    from ray import serve

    with connected():
        running = name in running_applications()
        if running:
            serve.delete(name)
    forget_endpoint(home, name)
    return running
