"""The engine as a process: HTTP over the resident model; the page is one of its clients."""
