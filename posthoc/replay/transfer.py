"""What moves between the machine's memory and a device while the device computes: the one place for streams and events.

A copy that was begun has not been made. Until its event has come, what it is copied from must not change, and what it is
copied to holds anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """What a device will have reached."""

    def synchronize(self) -> object:
        """Wait for it."""


@dataclass(frozen=True)
class Upload:
    """Tensors on their way to a device, by name. source: what they are copied from, which must not change until `sent`;
    tensors: those on the device."""

    source: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    sent: Event | None = None

    def free(self) -> Mapping[str, Tensor]:
        """The source, once it is read no more."""
        if self.sent is not None:
            self.sent.synchronize()
        return self.source


class Transfer:
    """To and from a device that has no streams of its own: when a call returns, all is done.

    direct: whether the device computes in the machine's own memory.
    """

    def __init__(self, direct: bool) -> None:
        self.direct = direct

    def upload(self, tensors: Mapping[str, Tensor]) -> Upload:
        """Begin to bring tensors to the device, beside what it computes; from any thread."""
        return Upload(tensors, tensors)

    def arrived(self, upload: Upload) -> Mapping[str, Tensor]:
        """What was brought, for what the device is given to do from now on."""
        return upload.tensors

    def download(self, tensor: Tensor) -> tuple[Tensor, Event | None]:
        """Begin to bring a tensor to the machine's memory; it is there when the event has come."""
        return tensor.cpu(), None


class CudaTransfer(Transfer):
    """To and from a GPU: up on a stream of its own, down on that which computes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(direct=False)
        self.device, self.stream = device, torch.cuda.Stream(device)

    def upload(self, tensors: Mapping[str, Tensor]) -> Upload:
        with torch.cuda.stream(self.stream):
            copies = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
            return Upload(tensors, copies, self.stream.record_event())

    def arrived(self, upload: Upload) -> Mapping[str, Tensor]:
        main = torch.cuda.current_stream(self.device)
        main.wait_stream(self.stream)
        for tensor in upload.tensors.values():  # made on the other stream, which else would use their memory anew
            tensor.record_stream(main)
        return upload.tensors

    def download(self, tensor: Tensor) -> tuple[Tensor, Event | None]:
        copy = tensor.to("cpu", non_blocking=True)
        return copy, torch.cuda.current_stream(self.device).record_event()


def transfer_to(device: torch.device) -> Transfer:
    """How tensors get to a device, and from it."""
    return CudaTransfer(device) if device.type == "cuda" else Transfer(direct=device.type == "cpu")


def is_lost(device: torch.device) -> bool:
    """Whether a GPU does nothing more in this process, as after an index out of bounds in a kernel."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
