"""Files that are written completely or not at all, on disk and in object storage; without torch."""
