"""How good the results are: COCO's AP over boxes, masks and boundaries."""
