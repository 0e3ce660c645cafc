"""The pages: each module lays out one page from plain data and registers its thin callbacks."""
