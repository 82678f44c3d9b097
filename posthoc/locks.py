"""Locks on open files, where the platform and the file system have them."""

import errno
import time

try:
    import fcntl
except ImportError:  # Windows: nothing is held; what is written is whole or absent all the same
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def hold(descriptor: int, shared: bool = False, patience: float = 0.0) -> bool:
    """Lock an open file, alone or shared with others, until it is closed or the process ends, however it ends.

    Returns False where there are no locks. Raises BlockingIOError where another process still has it after `patience`
    seconds; OSError where the file cannot be locked for another reason.
    """
    if fcntl is None:
        return False
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
