"""The engine: what Lightning runs, what it leaves behind, and the function that starts it."""
