"""Models to try and to test with: `models` builds them, `samples` trains some on real digits. Nothing is downloaded."""
