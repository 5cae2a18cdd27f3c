"""The command `embedmask demo`."""

from __future__ import annotations

import signal
from pathlib import Path

from embedmask.cli.threads import use_threads
from embedmask.errors import BadInput, needs_extra


def demo(
    *,
    weights: Path = Path("nuclei"),
    host: str = "127.0.0.1",
    port: int | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Serve a page to try a model: masks, thresholds that act at once, embeddings, downloads.

    Args:
        weights: Model file (.safetensors), the name of a bundled model, or user/model on the Hugging Face Hub.
        host: Address to listen on; 0.0.0.0 lets every computer of the network use the page.
        port: Port to listen on; by default the first free one from 7860 on.
        threads: CPU threads; by default PyTorch's choice.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    if port is not None and not 1 <= port <= 65535:
        raise BadInput(f"--port must lie between 1 and 65535, got {port}")
    use_threads(threads)
    with needs_extra("demo", "embedmask demo"):
        from embedmask.demo.page import serve
    from embedmask.inference.predictor import Predictor

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # delete temporary files also when killed
    predictor = Predictor.load(weights, device=device)
    serve(predictor, weights.stem, host=host, port=port, announce=announce)


def announce(address: str) -> None:
    """Print the address of the page."""
    print(f"{address} · Ctrl+C stops", flush=True)
