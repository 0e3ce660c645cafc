"""The dashboard: Dash pages on the server's FastAPI app, speaking to the backend through its public API alone."""

from frontend.app import mount

__all__ = ["mount"]
