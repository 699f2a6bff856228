"""The queue: runs that wait for a device, the worker that starts them, the only starter of processes. No torch."""
