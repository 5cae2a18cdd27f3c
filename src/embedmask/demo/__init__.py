"""Page of `embedmask demo`: session.py computes, page.py lays out and handles events with gradio."""
