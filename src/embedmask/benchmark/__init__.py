"""How fast the road from a file to finished masks is, stage by stage, beside torchvision's Mask R-CNN."""
