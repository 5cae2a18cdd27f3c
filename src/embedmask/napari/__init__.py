"""Plugin of napari: `napari.yaml` declares the widget, `layers.py` computes its layers."""
