"""`penstock serve MODEL`: one model, from a run, the registry or a folder, on the local Ray."""

from __future__ import annotations

import argparse
import json

from components.errors import SpecError
from components.serve.config import DeployConfig, ReplicasConfig
from components.tracking.names import checked_name
from pipelines.model_source import find_model
from pipelines.ray_cluster import connect_environment, lease
from pipelines.run_folder import penstock_home


def command(options: argparse.Namespace) -> int:
    from components.serve.deploy import check_port, deploy_model
    from components.serve.keys import keys_file
    from components.serve.replica import check_answers_classes, open_servable

    home = penstock_home()
    if not 0 <= options.port <= 65535 or options.replicas < 1:
        raise SpecError("--port must be 0 to 65535 and --replicas at least 1.")
    source = find_model(options.model)
    name = checked_name(options.name or source.name)
    keys_file(options.host)
    artifact = open_servable(source.ref)
    check_answers_classes(artifact)
    check_port(options.host, options.port, home)
    replicas = ReplicasConfig(min=options.replicas, max=options.replicas)
    deploy = DeployConfig(host=options.host, port=options.port, replicas=replicas)
    with lease(home):
        connect_environment(home)
        endpoint = deploy_model(artifact, name, source.version, deploy, home)
    if options.json:
        print(
            json.dumps({"status": "done", "name": name, "version": source.version, "endpoint": {"url": endpoint.url}})
        )
    else:
        print(f"{name} version {source.version} answers at {endpoint.url}\nend it with: penstock stop")
    return 0
