"""Several processes that train together: how they find each other, stop together, fail together.

The processes are JAX's own (`jax.distributed`). Two things are added. An error on one process ends
all of them with its message; otherwise the others would wait in the next all-reduce until a
time-out. And SIGTERM, which clusters send before they take a machine away, stops all processes
after the same step, so that they can save it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

_ERROR, _READ = "jaxsparse/error", "jaxsparse/read"
_GRACE = 5.0  # seconds for which process 0, which the others read from, waits for them


@contextlib.contextmanager
def joined(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    discover: bool = False,
    start_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> Iterator[None]:
    """Joins the other processes of the run for the length of the context.

    An exception in the context ends all processes: each prints the message and exits with 2. So
    does Ctrl-C on one of them. With a single process, the context does nothing and exceptions pass.

    Args:
      coordinator: "HOST:PORT" of process 0; None without --num_processes, or to discover it.
      num_processes: of the run.
      process_id: of this process, in [0, num_processes).
      discover: let JAX find the others, as it can on TPU pods, Slurm and Kubernetes.
      start_timeout: seconds to wait for all processes to start.
      heartbeat_timeout: seconds without a sign of life after which a process counts as dead; then
        JAX ends the others.

    Raises:
      ValueError: the flags do not fit together, or not all processes came in time.
    """
    if not discover and num_processes is None:
        if coordinator is not None or process_id is not None:
            given = "coordinator" if coordinator is not None else "process_id"
            raise ValueError(f"--{given} needs --num_processes")
        yield
        return
    if not discover:
        _check(coordinator, num_processes, process_id)
    _initialize(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        initialization_timeout=start_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout,
    )
    _exit_with_others()
    try:
        with _told_of_ctrl_c():
            yield
    except Exception as error:
        _end_all(error)
    finally:  # also if all processes stop after SIGTERM
        jax.distributed.shutdown()


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator is None or process_id is None:
        missing = "coordinator" if coordinator is None else "process_id"
        raise ValueError(f"--num_processes={num_processes} needs --{missing}")
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ValueError(f"--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:1234")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < (num_processes or 1):
        raise ValueError(f"--process_id={process_id} must be in [0, {num_processes})")


def _initialize(**options: Any) -> None:
    """Meets the others; exits with one line if they do not come in time, where JAX would abort."""
    seconds = options["initialization_timeout"]

    def give_up() -> None:
        print(
            f"error: not all of --num_processes={options['num_processes']} came to "
            f"--coordinator={options['coordinator_address']} within --start_timeout={seconds} "
            f"seconds; this is process {options['process_id']}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**options | {"initialization_timeout": 2 * seconds + 60})
    except (RuntimeError, ValueError) as error:  # JAX's own errors are of the first kind
        raise ValueError(f"the processes could not be joined: {error}") from None
    finally:
        timer.cancel()


def is_first() -> bool:
    """Whether this process is the one that prints, draws and writes the records."""
    return jax.process_index() == 0


def _client() -> Any:
    """Returns JAX's connection to the coordinator, None in a single process.

    There is no public way to its table of keys and values; Orbax takes this one too.
    """
    from jax._src import distributed

    return distributed.global_state.client


def _exit_with_others() -> None:
    """Waits in a thread for the error of another process, prints it and exits."""
    client = _client()

    def wait() -> None:
        message = ""
        while not message:
            try:
                message = client.blocking_key_value_get(_ERROR, 10**9)
            except (
                Exception
            ) as error:  # a wait of 11 days, or the end of the run and its connection
                if "DEADLINE_EXCEEDED" not in str(error):
                    return
        _follow(client, message)

    threading.Thread(target=wait, daemon=True, name="errors of other processes").start()


def _follow(client: Any, message: str) -> None:
    """Prints the error of another process, and exits; an own one is known."""
    number, _, text = message.partition(":")
    if number != str(jax.process_index()):
        print(f"error in process {number}: {text}", file=sys.stderr, flush=True)
        _leave(client)


@contextlib.contextmanager
def _told_of_ctrl_c() -> Iterator[None]:
    """Lets Ctrl-C on this process end the others too, with a line."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGINT)

    def leave(number: int, frame: Any) -> None:
        client = _client()
        with contextlib.suppress(Exception):
            client.key_value_set(_ERROR, f"{jax.process_index()}:interrupted")
        _wait_for_readers(client)
        if callable(before):
            before(number, frame)
        os._exit(130)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_all(error: BaseException) -> NoReturn:
    """Tells the others, prints the error, and exits."""
    if not isinstance(error, ValueError | OSError):  # it may follow from the end of another process
        with contextlib.suppress(Exception):
            _follow(_client(), _client().blocking_key_value_get(_ERROR, 1000))
    if not isinstance(error, ValueError | OSError) or os.environ.get("JAXSPARSE_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    else:
        print(f"error: {error}", file=sys.stderr, flush=True)
    client = _client()
    text = str(error) or type(error).__name__
    with contextlib.suppress(Exception):  # two processes may fail at once: the first message stays
        client.key_value_set(_ERROR, f"{jax.process_index()}:{text}")
    _leave(client)


def _leave(client: Any) -> NoReturn:
    """Exits at once, but see `_wait_for_readers`."""
    _wait_for_readers(client)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _wait_for_readers(client: Any) -> None:
    """Process 0, which holds the messages, waits for the others to read theirs."""
    with contextlib.suppress(Exception):
        client.key_value_set(f"{_READ}/{jax.process_index()}", "")
    deadline = time.monotonic() + _GRACE
    while is_first() and time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if len(client.key_value_dir_get(_READ)) >= jax.process_count():
                break
        time.sleep(0.05)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM into an answer that all processes get after the same step.

    Yields:
      A function from the number of completed steps to whether to save and stop now. Every process
      calls it after every step.
    """
    if jax.process_count() > 1:  # JAX has taken the signal, and agrees on the step
        yield multihost_utils.reached_preemption_sync_point
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield lambda _: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
