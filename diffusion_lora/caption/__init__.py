"""Models that describe pictures, by name, and the work of captioning a folder with one."""
