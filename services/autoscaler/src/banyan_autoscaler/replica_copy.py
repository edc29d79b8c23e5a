"""What the next replica of a compose service is created from: an existing one, inspected.

A copy and not the compose file, because the engine knows the truth: what a person changed on the
command line, in override files or in the environment is in the container. Its labels make it one
of compose's own, so that `docker compose ps`, `up --scale` and `down` treat it as such.
"""

from __future__ import annotations

from typing import Any

from banyan_autoscaler.container_engine import Json

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
NUMBER_LABEL = "com.docker.compose.container-number"
ONEOFF_LABEL = "com.docker.compose.oneoff"
REPLACE_LABEL = "com.docker.compose.replace"

_OF_THE_ENDPOINT = ("IPAMConfig", "Links", "DriverOpts", "GwPriority")
"""What of a network endpoint is configuration; the rest (addresses, ids) is state."""


def replica_name(project: str, service: str, number: int) -> str:
    """As compose names its containers."""
    return f"{project}-{service}-{number}"


def replica_config(template: Json, name: str, number: int) -> dict[str, Any]:
    """The body of a create call. Raises KeyError where `template` is not what inspect gives.

    The image is the template's by digest: a tag that was moved since must not mix two versions.
    """
    config = dict(template["Config"])
    if config.get("Hostname") == _short_id(template):
        del config["Hostname"]  # the engine named it after the container
    config.pop("MacAddress", None)
    config["Image"] = template["Image"]
    labels = dict(config["Labels"])
    labels.pop(REPLACE_LABEL, None)
    config["Labels"] = {**labels, NUMBER_LABEL: str(number)}
    config["HostConfig"] = dict(template["HostConfig"])
    config["NetworkingConfig"] = {
        "EndpointsConfig": {
            network: _endpoint(endpoint, template, name)
            for network, endpoint in template["NetworkSettings"]["Networks"].items()
        }
    }
    return config


def _endpoint(endpoint: Json, template: Json, name: str) -> dict[str, Any]:
    """The same names in the network, the service's among them, but the template's own."""
    own = {_short_id(template), str(template["Name"]).removeprefix("/")}
    aliases = [alias for alias in endpoint.get("Aliases") or () if alias not in own]
    kept = {key: endpoint[key] for key in _OF_THE_ENDPOINT if endpoint.get(key) is not None}
    return {**kept, "Aliases": [name, *aliases]}


def _short_id(template: Json) -> str:
    return str(template["Id"])[:12]
