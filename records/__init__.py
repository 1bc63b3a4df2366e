"""What is on disk and how it looks, without torch."""
