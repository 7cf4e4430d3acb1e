"""Base models: their files and digest, loading, and one small interface over all supported kinds."""
