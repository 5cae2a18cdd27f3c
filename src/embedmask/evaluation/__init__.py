"""COCO's AP of boxes, masks and boundaries, microscopy's matching metrics, and error analysis."""
