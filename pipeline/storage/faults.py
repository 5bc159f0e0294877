"""Storage errors that are not the fault of a file, with what to do about them: one line each."""

from __future__ import annotations

import errno
import re

from pipeline.errors import RunFailed, first_line

AGAIN = "then run the same command again, which continues"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
TORCH_NO_ROOM = "unexpected pos"  # all that torch.save says on a full disk
RAY_NO_ROOM = "object store is full and the local disk"  # of Ray's OutOfDiskError, which says nothing of this run
RAY_FULL = (
    "Ray's object store is full, and so is the disk for what does not fit into it (Ray uses up to 95 % of a disk)",
    "free some space on the disk of Ray's folder (/tmp/ray or --temp-dir), or start Ray with a larger "
    f"--object-store-memory, {AGAIN}",
)
FAULTS = {
    # HEAD has no body to say why: an expired token is a bare status 400 there
    r"ExpiredToken|EXPIRED|TokenRefreshRequired|HTTP status 400\) during Head": (
        "the credentials have expired: renew them on every node (AWS_SESSION_TOKEN, `aws sso login`, or a role of the "
        f"machine, which renews them by itself), {AGAIN}"
    ),
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]": (
        "the store rejects the credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or permit "
        f"them to read and write this place, {AGAIN}"
    ),
    r"SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION|"
    r"HTTP status (429|5\d\d)": (
        "S3 failed at every attempt (AWS_MAX_ATTEMPTS sets their number): check its address (endpoint_override or "
        f"AWS_ENDPOINT_URL), its load and the network, {AGAIN}"
    ),
}


def storage_fault(error: BaseException) -> str | None:
    """The fault of a store or a full disk, and the remedy, in one line; None for any other error."""
    found = _diagnose(error)
    return "; ".join(found) if found else None


def remedy_for(error: BaseException, otherwise: str) -> str:
    """The remedy for a fault of the store; `otherwise` for any other error."""
    found = _diagnose(error)
    return found[1] if found else otherwise


def raise_storage_fault(error: BaseException) -> None:
    """RunFailed for a fault of the store; nothing for the fault of one file, which must not affect others."""
    if fault := storage_fault(error):
        raise RunFailed(fault) from error


def _diagnose(error: BaseException) -> tuple[str, str] | None:
    if (isinstance(error, OSError) and error.errno in NO_ROOM) or TORCH_NO_ROOM in str(error):
        return first_line(error), f"free some space or raise the quota, {AGAIN}"
    if RAY_NO_ROOM in str(error):
        return RAY_FULL
    for line in str(error).splitlines():  # one that Ray wrapped has a traceback before it
        for fault, remedy in FAULTS.items():
            if "AWS Error" in line and re.search(fault, line):
                return line.strip(), remedy
    return None
