"""One device ``cuda`` whose memory is the host's, for a build of torch that has no CUDA: `fake_cuda.cpp`, compiled.

Import it before torch. Kernels run on the CPU, random numbers come from the CPU's generator, streams and events only
note that they were used. What a GPU refuses is refused: an operator on tensors of two devices. What makes the host wait
for a GPU is counted: `waits`. It cannot tell how fast a GPU is, and has no LSTM or GRU (cuDNN's own kernels).
"""

import contextlib
import ctypes
import os

_library = ctypes.CDLL(os.environ["FAKE_CUDA_LIBRARY"], mode=ctypes.RTLD_GLOBAL)  # before torch looks for CUDA
_library.fake_cuda_report.restype = ctypes.c_char_p

import torch  # noqa: E402
import torch.cuda as cuda  # noqa: E402


def waits():
    """How often the host waited for the device since the last call, by reason."""
    parts = (part.rsplit("=", 1) for part in _library.fake_cuda_report().decode().split(";") if part)
    _library.fake_cuda_reset()
    return {reason: int(count) for reason, count in parts}


#: What was asked of streams and events, in order.
calls = []


class Stream:
    def __init__(self, device=None, priority=0):
        self.device = torch.device("cuda", 0)

    def wait_stream(self, other):
        calls.append("wait_stream")

    def wait_event(self, event):
        calls.append("wait_event")

    def record_event(self, event=None):
        calls.append("record_event")
        return Event()

    def synchronize(self):
        calls.append("synchronize")


class Event:
    def __init__(self, enable_timing=False, blocking=False):
        pass

    def record(self, stream=None):
        calls.append("record")

    def query(self):
        return True

    def synchronize(self):
        calls.append("synchronize")


_streams = [Stream()]


@contextlib.contextmanager
def _stream(stream):
    _streams.append(stream)
    try:
        yield
    finally:
        _streams.pop()


def _storage_to(storage, device, non_blocking=False):
    if storage.device.type == torch.device(device).type:
        return storage
    made = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
    return made.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)).untyped_storage()


def _storage_clone(storage):
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).clone().untyped_storage()


_state = {"generator": torch.zeros(16, dtype=torch.uint8)}
cuda._lazy_init = lambda: None
# Each name has a function of its own: torch's compiler refuses one under two.
cuda._exchange_device = lambda device: 0
cuda._maybe_exchange_device = lambda device: 0
cuda.is_available = lambda: True
cuda.is_initialized = lambda: True
cuda.device_count = lambda: 1
cuda.current_device = lambda: 0
cuda.set_device = lambda device: None
cuda.synchronize = lambda device=None: None
cuda.empty_cache = lambda: None
cuda.memory_stats = lambda device=None: {"allocated_bytes.all.current": 0}
cuda.get_device_name = lambda device=None: "a fake"
cuda.is_bf16_supported = lambda including_emulation=True: True
cuda.Stream, cuda.Event, cuda.stream = Stream, Event, _stream
cuda.current_stream = lambda device=None: _streams[-1]
cuda.get_rng_state = lambda device="cuda": _state["generator"].clone()
cuda.set_rng_state = lambda state, device="cuda": _state.update(generator=state.clone())
cuda.manual_seed = lambda seed: None
cuda.manual_seed_all = lambda seed: None
torch.Tensor.record_stream = lambda tensor, stream: calls.append("record_stream")
torch.storage._to, torch.UntypedStorage.clone = _storage_to, _storage_clone
