"""Extraction that harms nothing else: PDFs are read in worker processes with bounded memory and time.

A PDF is a program for a large library in C, and comes from anybody. So it is read by a process that holds no secrets,
may write no file, and is killed when it takes too long. Workers are reused: starting one costs as much as 50 pages.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Self

import orjson

from operators.documents import Text
from operators.errors import DecodeError, UnavailableError
from operators.extract import PDF, ExtractLimits, PdfReader, check_size, extract, extractor_shape, media_type_of

_LENGTH = struct.Struct("<Q")
_READY = b"ready"
_START_S = 60.0
_ORPHAN_S = 30
_SERVED_MAX = 500
_NO_MEMORY = 77
_ANSWER_BYTES_PER_CHARACTER = 8
_ANSWER_BYTES_MORE = 16 << 20
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_MODULES: dict[PdfReader, str] = {"pypdf": "pypdf", "pdfium": "pypdfium2"}
_ROOT = str(Path(__file__).resolve().parents[1])


class Extraction:
    """Extracts documents; threads may share it.

    At most `workers` PDFs are read at once, further callers wait; text and Markdown are read by the caller itself.
    """

    def __init__(self, *, pdf: PdfReader = "pdfium", workers: int = 2, limits: ExtractLimits | None = None) -> None:
        """Start no process yet. Raises MissingExtraError if the PDF reader is not installed."""
        self.shape = extractor_shape(pdf)
        self._pdf: PdfReader = pdf
        self._limits = limits or ExtractLimits()
        self._slots = threading.BoundedSemaphore(workers)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def extract(self, data: bytes, uri: str, said: str | None = None) -> Text:
        """The text of a document. said: its media type, where its source says one.

        Raises DecodeError as `operators.extract.extract` does, and for a PDF also `timeout`, `out_of_memory` and
        `crashed`. Of these `out_of_memory` and `crashed` are the verdict of a new process: what earlier documents
        left in a worker never counts against a later one. Raises UnavailableError if no worker starts, and for a PDF
        that was being read when `close` was called.
        """
        check_size(data, uri, self._limits)
        if media_type_of(data, uri, said) != PDF:
            return extract(data, uri, pdf=self._pdf, limits=self._limits, said=said)
        with self._slots:
            worker = self._take()
            used = worker.served > 0
            try:
                return self._ask(worker, data, uri)
            except DecodeError as error:
                if self._closed:
                    raise UnavailableError(f"`{uri}` was being read when reading was ended") from error
                if not used or error.reason not in {"crashed", "out_of_memory"}:
                    raise
            return self._ask(_Worker(self._pdf, self._limits), data, uri)

    def close(self) -> None:
        """End all workers now, also in the middle of a document. Safe to repeat."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()
        for worker in idle:
            worker.end()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Worker(self._pdf, self._limits)

    def _ask(self, worker: _Worker, data: bytes, uri: str) -> Text:
        with self._lock:
            self._busy.add(worker)
            if self._closed:
                worker.kill()
        try:
            return worker.ask(data, uri)
        finally:
            with self._lock:
                self._busy.discard(worker)
                keep = worker.usable and not self._closed
                if keep:
                    self._idle.append(worker)
            if not keep:
                worker.end()


class _Worker:
    """One process, asked by one thread at a time."""

    def __init__(self, pdf: PdfReader, limits: ExtractLimits) -> None:
        """Start it and wait until it is ready. Raises UnavailableError if it does not come up."""
        plan = orjson.dumps({"pdf": pdf, "limits": asdict(limits)}).decode()
        path = os.pathsep.join([_ROOT, *(entry for entry in sys.path if entry)])
        self.served = 0
        self.usable = True
        self._limits = limits
        self._expired = False
        self._ended = False
        self._end_lock = threading.Lock()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter and this module
                [sys.executable, "-m", __name__, plan],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": path},  # nothing else: a document's process has no use for keys and passwords
                start_new_session=True,  # an interrupt at the terminal is ours to handle
            )
        except OSError as error:
            raise UnavailableError(f"no process can be started to read PDFs: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        if self._exchange((), _START_S) != _READY:
            self.end()
            raise UnavailableError("a process that reads PDFs ended before it was ready; is memory short?")

    def ask(self, data: bytes, uri: str) -> Text:
        """The text of a PDF. Raises DecodeError; look at `usable` before the next question."""
        self.served += 1
        answer = self._exchange((uri.encode(), data), self._limits.seconds)
        if self.served >= _SERVED_MAX:
            self.usable = False
        if answer is None:
            raise self._cause(uri)
        reply = orjson.loads(answer)
        if "reason" in reply:
            self.usable = self.usable and reply["reason"] != "out_of_memory"
            raise DecodeError(reply["reason"], reply["message"])
        return Text(reply["text"], PDF, tuple(reply["page_starts"]), reply["metadata"])

    def end(self) -> int:
        """Kill it and return the most memory that it held, in bytes. 0 when it had ended before."""
        self.usable = False
        with self._end_lock:
            if self._ended:
                return 0
            self._ended = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()
        return usage.ru_maxrss * _RSS_UNIT

    def kill(self) -> None:
        """Kill it from another thread than the one that asks, which then gets no answer."""
        with self._end_lock:
            if not self._ended:
                os.kill(self._process.pid, signal.SIGKILL)

    def _exchange(self, frames: tuple[bytes, ...], seconds: float) -> bytes | None:
        """Send frames and receive one; None if the process ended or was killed after `seconds` meanwhile."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        answer = None
        try:
            for frame in frames:
                _write_frame(self._to, frame)
            most = self._limits.characters * _ANSWER_BYTES_PER_CHARACTER + _ANSWER_BYTES_MORE
            answer = _read_frame(self._from, most)
        except OSError:  # the other end of the pipe is gone: the same as no answer
            answer = None
        finally:
            timer.cancel()
            timer.join()
        if answer is None or self._expired:
            self.usable = False
        return answer

    def _expire(self) -> None:
        """Kill the process; called while somebody waits for it, so the process has not been reaped yet."""
        self._expired = True
        os.kill(self._process.pid, signal.SIGKILL)

    def _cause(self, uri: str) -> DecodeError:
        """Why there was no answer."""
        most = self.end()
        if self._expired:
            return DecodeError("timeout", f"`{uri}` took more than {self._limits.seconds:g} s to read")
        if self._process.returncode == _NO_MEMORY or most > self._limits.memory_bytes // 2:
            return DecodeError("out_of_memory", f"`{uri}` needs more than {self._limits.memory_bytes >> 20:,} MiB")
        return DecodeError("crashed", f"`{uri}` crashed the PDF reader (exit {self._process.returncode})")


def _write_frame(pipe: IO[bytes], payload: bytes) -> None:
    pipe.write(_LENGTH.pack(len(payload)))
    pipe.write(payload)
    pipe.flush()


def _read_frame(pipe: IO[bytes], most: int = sys.maxsize) -> bytes | None:
    """The next frame; None at the end of the pipe, within a frame, or before one of more than `most` bytes."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > most:
        return None
    payload = pipe.read(size)
    return payload if len(payload) == size else None


def _serve() -> None:
    """Answer questions until the other end of the pipe closes."""
    plan = orjson.loads(sys.argv[1])
    pdf: PdfReader = plan["pdf"]
    limits = ExtractLimits(**plan["limits"])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import_module(_MODULES[pdf])
    import_module("operators.extract_pdf")
    _confine(limits)
    try:
        _write_frame(answers, _READY)
        while (uri := _read_frame(sys.stdin.buffer)) is not None:
            data = _read_frame(sys.stdin.buffer)
            if data is None:
                return
            signal.alarm(int(limits.seconds) + _ORPHAN_S)  # ends it even if nobody is left to kill it
            _write_frame(answers, _answer(data, uri.decode(), pdf, limits))
            signal.alarm(0)
    except MemoryError:
        os._exit(_NO_MEMORY)


def _answer(data: bytes, uri: str, pdf: PdfReader, limits: ExtractLimits) -> bytes:
    try:
        text = extract(data, uri, pdf=pdf, limits=limits, said=PDF)
    except DecodeError as error:
        return orjson.dumps({"reason": error.reason, "message": str(error)})
    return orjson.dumps({"text": text.text, "page_starts": text.page_starts, "metadata": text.metadata})


def _confine(limits: ExtractLimits) -> None:
    """Bound the memory of this process and take files and core dumps from it."""
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS knows no bound of the address space
            resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    _serve()
