"""The machine and the process: errors, options, device, ranks, storage, metrics, downloads."""
