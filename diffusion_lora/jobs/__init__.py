"""The queue: runs that wait for a device, the worker that starts them, the one place that starts processes. No torch."""
