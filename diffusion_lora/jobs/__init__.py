"""The queue: runs waiting for a device, the worker that starts them, and the only place that starts processes. No torch."""
