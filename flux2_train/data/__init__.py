"""Folder, captions, geometry and the two caches."""
