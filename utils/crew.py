"""Workers that train together: how they meet before TensorFlow connects them, and how one learns of another's end.

TensorFlow waits for workers that never come without end, deaf to signals, and does not say which worker it has lost
for sure. So every worker first connects to the first one and shows what it is about to train; the connections then
stay open, and the kernel closes them when a process dies, however it dies.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

from utils.cli import CleanExit, UserError
from utils.cluster import Cluster
from utils.signals import Stopped, StopRequest

# How long workers wait for each other: job steps start together, but nodes may still be booting [s].
PATIENCE = 600.0
# Of a worker that has something to tell the others before it ends; they may still be importing TensorFlow [s].
_LAST_PATIENCE = 60.0
_GLANCE = 0.2  # between two looks at whether somebody asked to stop [s]
_LONGEST_MESSAGE = 2**16


class Crew:
    """The workers of one training, as seen from one of them; a context manager.

    An exception that leaves the block is told to the others before it goes on, so that nobody waits for a worker that
    will not come. The error by which TensorFlow reports lost workers becomes a `UserError` that names them.

    Parameters
    ----------
    cluster : Cluster or None
        None: this process trains alone, and nothing here does anything.
    stop : StopRequest

    Attributes
    ----------
    rank, size : int
        This worker's number, and how many there are.
    card : dict
        JSON values that have to be the same for all workers, to be set before they meet.
    """

    def __init__(self, cluster: Cluster | None, stop: StopRequest):
        self.cluster = cluster
        self.rank, self.size = (cluster.rank, cluster.size) if cluster else (0, 1)
        self.card: dict = {}
        self._stop = stop
        self._connections: dict[int, socket.socket] = {}
        self._met = False

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes."""
        return self.rank == 0

    def meet(self, devices: list[str], patience: float = PATIENCE) -> None:
        """Wait until all workers are there, and make sure that all are about to train the same.

        The port of the first worker is used, and free again afterwards.

        Parameters
        ----------
        devices : list of str
            This worker's, by name. TensorFlow waits without end where one has more of them than another.
        patience : float
            Seconds to wait.

        Raises
        ------
        UserError
            If workers do not come in time, come twice, or have other cards; the message names them.
        Stopped
            If somebody asks to stop meanwhile.
        """
        self.card = json.loads(json.dumps(self.card | {"devices": devices}))
        if self.is_first:
            self._gather(patience)
            for connection in self._connections.values():
                connection.sendall(b"{}\n")
        else:
            self._report({"rank": self.rank, "card": self.card}, patience)
        self._met = True

    def lost(self) -> dict[int, str]:
        """Workers whose connection has ended, by rank, and their last words: an empty text of those that died."""
        ended = {}
        for rank, connection in self._connections.items():
            connection.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                try:
                    ended[rank] = connection.recv(_LONGEST_MESSAGE).decode(errors="replace")
                except ConnectionError:
                    ended[rank] = ""
        return ended

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, _type, error, _traceback) -> None:
        if self.cluster is None:
            return
        words = " ".join(str(error).split())[:1000] or type(error).__name__ if error else "done"
        if not self._met:
            self._excuse(words)
            return
        lost = self.lost() if _is_from_tensorflow(error) else {}
        loss = bool(lost) or (_is_from_tensorflow(error) and "ollective" in words)
        self._leave("it lost another worker" if loss else words)
        if loss:
            raise UserError(_describe_loss(self.cluster, lost, words)) from error

    def _leave(self, last_words: str) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # who has ended already need not know
                connection.settimeout(1)
                connection.sendall(last_words.encode())
            connection.close()

    def _excuse(self, words: str) -> None:
        """Tell the others that this worker will not come; for a while only, since they may not come either."""
        refusal = json.dumps({"refused": words}) + "\n"
        with contextlib.suppress(CleanExit):
            if self.is_first:
                self._gather(_LAST_PATIENCE, refusing=True)
            elif not self._connections:
                self._report({"rank": self.rank, "refused": words}, _LAST_PATIENCE)
        self._leave(refusal)

    def _gather(self, patience: float, refusing: bool = False) -> None:
        """As the first worker: let all others connect."""
        with _listen(self.cluster.addresses[0]) as server:
            for _ in _glances(self._stop, patience):
                if len(self._connections) == self.size - 1:
                    return
                with contextlib.suppress(TimeoutError):
                    self._admit(server.accept()[0], refusing)
        absent = [self.cluster.name(rank) for rank in range(1, self.size) if rank not in self._connections]
        raise UserError(f"{', '.join(absent)} did not come within {patience:.0f} s; start all workers together")

    def _admit(self, connection: socket.socket, refusing: bool) -> None:
        """Take in a worker that has connected, or refuse all of them because of it. Strangers are ignored."""
        connection.settimeout(5)
        try:
            message = json.loads(_read_line(connection))
            rank, card, refused = int(message["rank"]), message.get("card"), message.get("refused")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            connection.close()
            return
        known = rank in self._connections or not 0 < rank < self.size
        self._connections[rank if not known else -1] = connection
        if refusing:
            return
        if known:
            raise UserError(f"two processes say that they are worker {rank} of {self.size}; mend {self.cluster.source}")
        name = self.cluster.name(rank)
        if refused:
            raise UserError(f"{name} has ended: {refused}")
        if card != self.card:
            raise UserError(
                f"{name} is about to train something else than worker 0: {'; '.join(_differences(self.card, card))}; "
                f"start all workers with the same code, arguments and data, on as many devices each"
            )

    def _report(self, message: dict, patience: float) -> None:
        """As another worker: connect to the first, and wait for its word."""
        host, _, port = self.cluster.addresses[0].rpartition(":")
        first, connection, answer = self.cluster.name(0), None, b""
        for _ in _glances(self._stop, patience):
            if connection is None:
                connection = _connect(host.strip("[]"), int(port), message)
                if connection:
                    self._connections[0] = connection
                continue
            with contextlib.suppress(TimeoutError):
                received = _receive(connection)
                if not received:
                    raise UserError(f"{first} ended before the training began; its message says why")
                answer += received
                if answer.endswith(b"\n"):
                    break
        else:
            raise UserError(f"{first} did not answer within {patience:.0f} s; start all workers together")
        if refused := json.loads(answer).get("refused"):
            raise UserError(f"worker 0 has ended: {refused}")


def _listen(address: str) -> socket.socket:
    port = int(address.rpartition(":")[2])
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"port {port} of {address} cannot be used: {error.strerror}; is another training running there?"
        ) from None
    server.settimeout(_GLANCE)
    return server


def _connect(host: str, port: int, message: dict) -> socket.socket | None:
    """Connect and send a message; None while nobody listens there."""
    try:
        connection = socket.create_connection((host, port), timeout=5)
        connection.sendall((json.dumps(message) + "\n").encode())
    except OSError:
        time.sleep(_GLANCE)
        return None
    connection.settimeout(_GLANCE)
    return connection


def _receive(connection: socket.socket) -> bytes:
    """What has come; nothing at the end of the connection, however it ended."""
    try:
        return connection.recv(_LONGEST_MESSAGE)
    except ConnectionError:
        return b""


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_MESSAGE:
        received = connection.recv(_LONGEST_MESSAGE)
        if not received:
            break
        line += received
    return line


def _glances(stop: StopRequest, patience: float) -> Iterator[None]:
    """Turns of waiting, until patience ends or somebody asks to stop."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if stop.signal_name:
            raise Stopped(f"stopped by {stop.signal_name} while waiting for other workers; nothing was trained")
        yield


def _differences(card, other, path="") -> Iterator[str]:
    """What differs between two trees of JSON values."""
    if isinstance(card, dict) and isinstance(other, dict):
        for key in sorted(card.keys() | other.keys()):
            yield from _differences(card.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif card != other:
        yield f"{path} is {other!r}, not {card!r}"


def _is_from_tensorflow(error: BaseException | None) -> bool:
    return error is not None and type(error).__module__.startswith("tensorflow.")


def _describe_loss(cluster: Cluster, lost: dict[int, str], words: str) -> str:
    died = [f"{cluster.name(rank)} has died" for rank, last_words in lost.items() if not last_words]
    left = [f"{cluster.name(rank)} has ended: {last_words}" for rank, last_words in lost.items() if last_words]
    what = "; ".join(died or left) or f"a worker was lost ({words[-300:]})"
    return f"{what}; the last saved state is intact: go on with --resume, with as many workers as you like"
