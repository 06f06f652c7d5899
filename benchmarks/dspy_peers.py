"""Other servers as systems: DSPy over an OpenAI-compatible interface on this machine, with the weights that our engine runs.

A server is started by the benchmark on a port that the operating system chose, and stopped by it, whatever happens; its log lies in
a temporary folder. It is held (SIGSTOP) while other systems are measured, and every round finds its cache empty. ``benchmarks/peers``
makes the environments; a peer that has none, or does not start, is a line with the reason.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import dspy
from dspy_systems import DspyOutcome, reported, run_program
from dspy_workloads import THREADS, DspyWorkload, ForgivingAdapter
from harness import Advance, Outcome, Session, System
from peers import llama_cpp, vllm_cpu

from sgl_core.runtime.model_source import ModelSource

__all__ = ["LLAMA", "LLAMA_FILE", "N_AT_ONCE", "VLLM", "Peer", "PeerError", "Server", "llama_peers", "peer_system", "vllm_peer"]

LLAMA, LLAMA_FILE, VLLM = "llama.cpp", "llama.cpp, the file as it is", "vLLM"
"""The first and the last compute in float32, as we do; the second one with the weights as they are quantised in the file."""
N_AT_ONCE = ", n in one request"
"""Behind the name of a peer: reached through LiteLLM, which hands ``n`` to the server; DSPy's own road asks one by one."""
_MODEL = "benchmarked"
_HOST = "127.0.0.1"
_CONTEXT_TOKENS = 4096
"""Of each slot."""
_START_S, _STOP_S, _ANSWER_S = 600.0, 20.0, 600.0
_LOG_LINES = 3


class PeerError(Exception):
    """Why a peer cannot be measured, in a line."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How a server is run.

    Args:
        name: for the report.
        told: its version and what it was set to, for the report.
        command: of the process, given its port.
        environment: on top of ours.
        empty: path that empties its cache; None for a server that starts quickly, which is started again.
        encode: ids of a conversation, by a function that posts to a path.
    """

    name: str
    told: str
    command: Callable[[int], list[str]]
    encode: Callable[[Callable[[str, Any], Any], list[dict[str, Any]]], Sequence[int]]
    environment: dict[str, str] = field(default_factory=dict)
    empty: str | None = None


# ---- the peers ------------------------------------------------------------------------------------------------------------
def llama_peers(source: ModelSource, threads: int) -> list[Peer]:
    """llama.cpp's server in float32 and, for a file that is quantised, with the file itself.

    Raises:
        PeerError: it was not built, or the weights cannot be written in float32.
    """
    if not llama_cpp.SERVER.exists():
        raise PeerError(f"it was not built here; {llama_cpp.MAKE}")
    if source.kind != "gguf":
        raise PeerError(f"it reads GGUF files, and the model is a {source.kind}")
    return [_llama(LLAMA, _in_float32(source), threads), _llama(LLAMA_FILE, source.path, threads)]


def _llama(name: str, weights: Path, threads: int) -> Peer:
    options = {"parallel": THREADS, "ctx-size": THREADS * _CONTEXT_TOKENS, "threads": threads}

    def command(port: int) -> list[str]:
        start = [str(llama_cpp.SERVER), "--model", str(weights), "--alias", _MODEL, "--host", _HOST, "--port", str(port)]
        return [*start, "--offline", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]

    def encode(post: Callable[[str, Any], Any], messages: list[dict[str, Any]]) -> Sequence[int]:
        text = post("/apply-template", {"messages": messages})["prompt"]
        ids: list[int] = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        return ids

    said = ", ".join(f"--{option} {value}" for option, value in options.items())
    told = (
        f"llama-server of llama-cpp-python {llama_cpp.VERSION}: {said}; prompt cache, reuse and similarity of slots by default"
    )
    return Peer(name, told, command, encode)


def _in_float32(source: ModelSource) -> Path:
    """The weights dequantised, as our loader does it; written once."""
    weights = llama_cpp.FOLDER / "weights" / f"{source.fingerprint[:16]}-F32.gguf"
    if not weights.exists():
        weights.parent.mkdir(exist_ok=True)
        unfinished = weights.with_suffix(".part")
        command: list[str | Path] = [llama_cpp.QUANTIZE, "--allow-requantize", source.path, unfinished, "F32"]
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode:
            raise PeerError(f"{llama_cpp.QUANTIZE.name} ended with {made.returncode}: {_last_lines(made.stderr)}")
        unfinished.rename(weights)
    return weights


def vllm_peer(folder: Path, threads: int) -> Peer:
    """The server of vLLM on a processor, with prefix caching.

    Args:
        folder: the weights as safetensors.

    Raises:
        PeerError: it was not installed.
    """
    if not vllm_cpu.SERVER.exists():
        raise PeerError(f"it was not installed here; {vllm_cpu.MAKE}")
    options = {"dtype": "float32", "max-model-len": _CONTEXT_TOKENS, "served-model-name": _MODEL}

    def command(port: int) -> list[str]:
        start = [str(vllm_cpu.SERVER), "serve", str(folder), "--host", _HOST, "--port", str(port)]
        flags = ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
        return [*start, *flags, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]

    def encode(post: Callable[[str, Any], Any], messages: list[dict[str, Any]]) -> Sequence[int]:
        ids: list[int] = post("/tokenize", {"model": _MODEL, "messages": messages})["tokens"]
        return ids

    environment = {
        "OMP_NUM_THREADS": str(threads),
        "LD_PRELOAD": vllm_cpu.preloads(),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_SERVER_DEV_MODE": "1",  # has the path that empties the cache
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(vllm_cpu.FOLDER / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{vllm_cpu.SERVER.parent}{os.pathsep}{os.environ['PATH']}",  # it compiles, with tools of its environment
    }
    told = f"vllm-cpu {vllm_cpu.VERSION}: --dtype float32 --enable-prefix-caching, {threads} threads, 2 GiB of cache"
    return Peer(VLLM, told, command, encode, environment, "/reset_prefix_cache")


# ---- a server -------------------------------------------------------------------------------------------------------------
class Server:
    """A peer's process, from ``with`` to the end of it. It owns the process, its log and its port."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="bench-dspy-")
        self._log = Path(self._folder.name) / "log.txt"

    def __enter__(self) -> Self:
        """Start it, and wait until it answers.

        Raises:
            PeerError: it does not.
        """
        try:
            self._start()
            self.hold()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and all processes that it started."""
        self._stop()
        self._folder.cleanup()

    @contextmanager
    def round(self) -> Iterator[None]:
        """Inside, it runs; its cache is empty at the beginning."""
        self._signal(signal.SIGCONT)
        if self.peer.empty is None:
            self._stop()
            self._start()
        else:
            self.post(self.peer.empty, None)
        try:
            yield
        finally:
            self.hold()

    def hold(self) -> None:
        """Let it take no time from others."""
        self._signal(signal.SIGSTOP)

    def lm(self, **options: Any) -> dspy.LM:
        """As a user of DSPy reaches it."""
        url = f"http://{_HOST}:{self._port}/v1"
        fixed = {"api_base": url, "api_key": "none", "cache": False, "num_retries": 0, "timeout": _ANSWER_S}
        return dspy.LM(f"openai/{_MODEL}", temperature=0.0, **fixed, **options)

    def prompt_ids(self, messages: str) -> tuple[int, ...]:
        """What it makes of a conversation (as ``Reply`` has it); it must be running."""
        return tuple(self.peer.encode(self.post, json.loads(messages)))

    def post(self, path: str, content: Any) -> Any:
        """Ask it directly; returns its JSON, or None where it gives none."""
        body = b"" if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://{_HOST}:{self._port}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
            answer = response.read()
        return json.loads(answer) if answer else None

    def _start(self) -> None:
        self._port = _free_port()
        environment = {**os.environ, **{name: value for name, value in self.peer.environment.items() if value}}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.peer.command(self._port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us, who stop it then
            )
        self._wait_until_ready(self._process)
        asked = {"model": _MODEL, "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 8}
        try:
            self.post("/v1/chat/completions", asked)  # what it sets up at first use
        except OSError as error:
            raise PeerError(f"it does not answer: {error}: {_last_lines(self._log.read_text(errors='replace'))}") from error

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if process.poll() is not None:
                said = _last_lines(self._log.read_text(errors="replace"))
                raise PeerError(f"its server ended with {process.returncode}: {said}")
            with suppress(OSError), urllib.request.urlopen(f"http://{_HOST}:{self._port}/health", timeout=5):
                return
            time.sleep(0.2)
        raise PeerError(f"its server was not ready after {_START_S:.0f} s")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGCONT, signal.SIGTERM):
            _signal_group(process, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        _signal_group(process, signal.SIGKILL)  # it, if need be, and what it left behind
        process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            _signal_group(self._process, number)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # it leads a group of its own


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind((_HOST, 0))
        port: int = bound.getsockname()[1]
    return port


def _last_lines(text: str) -> str:
    """The end of a log, in one line; the last error of it, where it names one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return " / ".join((errors or lines)[-_LOG_LINES:])[-400:]


# ---- as a system ------------------------------------------------------------------------------------------------------------
def peer_system(
    server: Server,
    workload: DspyWorkload,
    bias: dict[str, float],
    rounds: int,
    *,
    patience_s: float,
    n_at_once: bool = False,
) -> System:
    """The program over this server, in the way of DSPy's own ``ChatAdapter``.

    Args:
        bias: ``logit_bias`` of every request, the same for all systems.
        rounds, patience_s: see ``System``.
        n_at_once: go through LiteLLM, see ``N_AT_ONCE``.
    """

    @contextmanager
    def session() -> Iterator[Session]:
        program = workload.build()
        with server.round():
            os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or LiteLLM looks prices up first
            lm = server.lm(max_tokens=workload.max_tokens, logit_bias=bias, engine="litellm" if n_at_once else "auto")
            lm("Say hello.", max_tokens=1)  # the client's own first use

            def run(advance: Advance) -> Outcome:
                outputs, replies = run_program(workload, program, lm, ForgivingAdapter(), advance)
                return DspyOutcome((), reported(replies), outputs, replies)

            yield run

    return System(server.peer.name + (N_AT_ONCE if n_at_once else ""), session, rounds, patience_s)
