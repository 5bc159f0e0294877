"""One interface to local folders and filesystem URIs: their addresses, reading them, and writing whole files."""

from pipeline.storage.faults import raise_storage_fault, remedy_for, storage_fault
from pipeline.storage.filesystems import filesystem
from pipeline.storage.folder import Folder, check_readable, check_writable, probe, whole_file, write_atomically
from pipeline.storage.place import HIDDEN, Place, absolute, join, redacted, refuse_secrets

__all__ = [
    "HIDDEN",
    "Folder",
    "Place",
    "absolute",
    "check_readable",
    "check_writable",
    "filesystem",
    "join",
    "probe",
    "raise_storage_fault",
    "redacted",
    "refuse_secrets",
    "remedy_for",
    "storage_fault",
    "whole_file",
    "write_atomically",
]
