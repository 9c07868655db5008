"""nano's world: creatures and things put together of parts, in scenes with ground and sky."""
