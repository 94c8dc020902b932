"""`connected`: Ray on this machine, bound to loopback, or a running cluster that is joined."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lotterykit.errors import ArgumentError, LotterykitError, brief
from lotterykit.experiments.resources import Resources

AUTH = "RAY_AUTH_MODE"  # "token": a token that Ray makes and finds by itself guards the cluster
CONNECT_SECONDS = 5.0  # until a cluster counts as not there; Ray itself would try for minutes

# For the processes that Ray starts and their children. The first sends nothing home. The second makes Ray
# bind to loopback alone, on Linux too; without it, it takes the address that others reach.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of a change of its own
    "OMP_WAIT_POLICY": "passive",
}


def need_ray() -> None:
    """Raises `LotterykitError`, naming the extra, where Ray cannot be imported."""
    try:
        importlib.import_module("ray")
    except ImportError as error:
        raise LotterykitError(f"executor ray needs ray ({error}): pip install 'lotterykit[ray]'") from None


@contextmanager
def connected(resources: Resources, workers: int) -> Iterator[None]:
    """Ray, for `workers` batches at once: the cluster at `ray_address`, else the one this process has joined
    already, else one of its own that ends with it. Raises `LotterykitError` where none can be had, and where
    Ray fails meanwhile, as it does when its head node dies."""
    need_ray()
    import ray

    if ray.is_initialized():
        if resources.ray_address is not None:
            raise ArgumentError("this process has joined a Ray cluster already: leave ray_address out")
        with _failure_as_ours():
            yield
        return
    with _sigterm_as_it_was(), _auth_as_it_was(), _failure_as_ours():
        try:
            if resources.ray_address is None:
                _start(math.ceil(workers * (resources.cpus_per_task or 1)))
            else:
                _join(resources.ray_address)
            yield
        finally:
            ray.shutdown()


@contextmanager
def _failure_as_ours() -> Iterator[None]:
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise LotterykitError(f"Ray failed: {type(error).__name__}: {brief(error)}") from error


def slots(resources: Resources) -> int:
    """How many batches fit at once on the nodes that are alive."""
    import ray

    wanted = {"CPU": resources.cpus_per_task or 0.0, "GPU": resources.gpus_per_task or 0.0}
    total = 0
    for node in ray.nodes():
        if node["Alive"]:
            fits = [node["Resources"].get(k, 0.0) / v for k, v in wanted.items() if v]
            total += int(min(fits) + 1e-9)
    return total


def _start(cpus: int) -> None:
    import ray

    with on_loopback():
        _init("Ray did not start", address="local", num_cpus=cpus, include_dashboard=False)
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        raise LotterykitError(
            f"this version of Ray ({ray.__version__}) listens on {address}, beyond this machine: start a "
            "cluster yourself and name it with ray_address"
        )


def _join(address: str) -> None:
    if address != "auto":
        _check_address(address)
    with _silent_errors():
        try:
            _init(f"no Ray cluster at {address}", address=address)
        except LotterykitError as error:
            if address == "auto" or os.environ.get(AUTH):
                raise
            hint = f"where it asks for a token, set {AUTH}=token"  # an address never does that for us
            raise LotterykitError(f"{error} ({hint})") from None


def _check_address(address: str) -> None:
    """Raises `LotterykitError` where nothing listens there."""
    import ray

    host, _, port = address.rpartition(":")
    hosts = [host]
    if host in ("localhost", "127.0.0.1", "::1"):
        hosts.append(ray.util.get_node_ip_address())  # as Ray reads it
    for each in hosts:
        try:
            socket.create_connection((each, int(port)), CONNECT_SECONDS).close()
            return
        except (OSError, OverflowError) as error:
            reason = error
    raise LotterykitError(f"no Ray cluster at {address}: {reason}")


def _init(complaint: str, **settings: Any) -> None:
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise LotterykitError(f"{complaint}: {' '.join(str(error).split())}") from None


@contextmanager
def on_loopback() -> Iterator[None]:
    """What is started of Ray in this context binds to loopback alone, sends no statistics and is quiet."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER  # this process read its environment when it imported Ray
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment(QUIET), _silent_errors():
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _silent_errors() -> Iterator[None]:
    """Ray prints pages on stdout about each process that dies; the sweep says it in one line."""
    from ray._private import worker

    name = "listen_error_messages"
    before = getattr(worker, name, None)
    if before is None:
        yield
        return
    setattr(worker, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(worker, name, before)


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _auth_as_it_was() -> Iterator[None]:
    """A Ray of our own sets the mode for its processes, and would keep it for what is started later."""
    before = os.environ.get(AUTH)
    try:
        yield
    finally:
        os.environ.pop(AUTH, None)
        if before is not None:
            os.environ[AUTH] = before


@contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """Ray takes SIGTERM for the time that it is connected, and would keep it."""
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if mine else None
    try:
        yield
    finally:
        if before is not None:
            with suppress(ValueError):
                signal.signal(signal.SIGTERM, before)
